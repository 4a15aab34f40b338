"""The parameters of each detector, from honest rows and simulated strange ones. A new detector is one line in `FITTERS`.

Thresholds are not found here: they are infinite in what a fitter returns, and `garrison.hardening.watching` finds them by running the detector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from garrison.guard.detectors.accounts import Accounts
from garrison.guard.detectors.base import Detector, Seen
from garrison.guard.detectors.bounded_prada import BoundedPrada
from garrison.guard.detectors.coverage import Coverage
from garrison.guard.detectors.hardness import MOST_CLASSES, Hardness, distance
from garrison.guard.detectors.near_duplicates import NearDuplicates
from garrison.guard.detectors.ood_cover import OodCover
from garrison.guard.detectors.ood_rate import OodRate
from garrison.guard.detectors.small_steps import SmallSteps
from garrison.guard.detectors.tables import bins
from garrison.hardening.accounts import fit_accounts as fit_accounts_of
from garrison.hardening.fit_prada import fit_bounded_prada
from garrison.hardening.laws import law, nats_of
from garrison.hardening.near import fit_near_duplicates
from garrison.hardening.shifts import PLAIN
from garrison.hardening.small_steps import fit_small_steps
from garrison.hardening.strange import OUTLIERS, STEPPED, UNIFORM
from garrison.types import Array, BoolArray, FloatArray, IntArray

_CONFIDENCE_QUANTILES = 18
_PROBABILITY_QUANTILES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_FAR_QUANTILES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)
_LOW_QUANTILES = (0.002, 0.005, 0.01, 0.02, 0.04, 0.07, 0.12, 0.2, 0.3, 0.5, 0.7)
_STRANGE_QUANTILES = (0.1, 0.25, 0.45)
_COVER = 2 / 3
_FEWEST_OF_A_CLASS = 50
_SKEW = 0.5
"""Share of rows of one class in the honest caller with the narrowest interest that is allowed for; `ood-rate` allows for any."""
_BITS = 11
_WINDOW = 1_000
_ASKED = (25.0, 50.0, 100.0, 200.0, 350.0)
_DIGITS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Honest:
    """What detectors are fitted on. `place` and `asked` of these rows mean nothing.

    Attributes:
        pools: by kind of shift, honest rows; row i of each is the same row of the owner's, and "plain" is as it is.
        strange: by kind, simulated rows of thieves; may be empty.
        classes: of the model.
        seed: of what a fitter draws.
    """

    pools: Mapping[str, Seen]
    strange: Mapping[str, Seen]
    classes: int
    seed: int

    @property
    def plain(self) -> Seen:
        return self.pools[PLAIN]

    def joined(self, name: str) -> Array:
        """One of the arrays, of all honest rows."""
        return np.concatenate([getattr(pool, name) for pool in self.pools.values()])

    def part(self, rows: IntArray) -> Honest:
        """The same of some of the honest rows; strange ones are all kept."""
        pools = {
            kind: Seen(**{name: getattr(pool, name)[rows] for name in Seen.__struct_fields__})
            for kind, pool in self.pools.items()
        }
        return Honest(pools, self.strange, self.classes, self.seed)

    def by_class(self) -> Iterator[tuple[str, int, BoolArray]]:
        """(kind, class, its rows in the plain pool) of the classes with rows enough."""
        for kind in self.pools:
            for number in range(self.classes):
                rows = self.plain.top == number
                if rows.sum() >= _FEWEST_OF_A_CLASS:
                    yield kind, number, rows


Fitter = Callable[[Honest], Detector | None]


def fit_ood_rate(honest: Honest) -> OodRate | None:
    """Against drawn outliers, uniform noise and own rows that were stepped out of place; honest callers may stay with one class."""
    if not honest.strange:
        return None
    values = np.concatenate([honest.joined("confidence"), *(s.confidence for s in honest.strange.values())])
    edges = _edges(values, np.linspace(0, 1, _CONFIDENCE_QUANTILES + 2)[1:-1])

    def found(values: FloatArray) -> IntArray:
        return bins(values, edges)

    count = len(edges) + 1
    laws = [law(found(pool.confidence), count) for pool in honest.pools.values()]
    laws += [law(found(honest.pools[kind].confidence[rows]), count) for kind, _, rows in honest.by_class()]
    kinds = {OUTLIERS: 0.25, UNIFORM: 0.1, STEPPED: 0.65}
    attack = sum(share * law(found(honest.strange[kind].confidence), count) for kind, share in kinds.items())
    return OodRate(threshold=math.inf, edges=tuple(edges.tolist()), nats=nats_of(np.asarray(attack), np.stack(laws)))


def fit_ood_cover(honest: Honest) -> OodCover | None:
    """Against rows that were stepped out of place, with two honest rows for each of them."""
    if not honest.strange:
        return None
    lines = honest.classes if honest.classes <= MOST_CLASSES else 1
    plain = honest.plain
    edges = _class_edges(plain.probability, plain.top, lines, _LOW_QUANTILES)
    strange = _edges(honest.strange[STEPPED].confidence, np.array(_STRANGE_QUANTILES))
    width = len(strange) + 1
    count = (edges.shape[1] + 1) * width

    def found(seen: Seen) -> IntArray:
        line = np.minimum(seen.top, lines - 1)
        return bins(seen.probability, edges[line]) * width + bins(seen.confidence, strange)

    laws = _skewed({kind: found(pool) for kind, pool in honest.pools.items()}, count, honest)
    attack = _COVER * law(found(plain), count) + (1 - _COVER) * law(found(honest.strange[STEPPED]), count)
    return OodCover(
        threshold=math.inf, edges=_lines(edges), strange=tuple(strange.tolist()), nats=nats_of(attack, laws)
    )


def _skewed(cells: Mapping[str, IntArray], count: int, honest: Honest) -> FloatArray:
    """Laws of honest callers of each kind: of all rows, and with `_SKEW` of them from one class; shape (laws, bins)."""
    whole = {kind: law(cells[kind], count) for kind in cells}
    narrow = [(1 - _SKEW) * whole[kind] + _SKEW * law(cells[kind][rows], count) for kind, _, rows in honest.by_class()]
    return np.stack([*whole.values(), *narrow])


def fit_hardness(honest: Honest) -> Hardness | None:
    """Against a thief who takes the harder of two rows, as margin sampling does, that are no more unusual for that, and asks two honest rows for each of them.

    Without the honest rows in the law, those that a thief asks as cover would speak against theft as much as the others speak for it.
    """
    plain = honest.plain
    mean, whiten = whitening(honest.joined("projection"))
    out = {kind: distance(pool.projection, mean, whiten) for kind, pool in honest.pools.items()}
    lines = honest.classes if honest.classes <= MOST_CLASSES else 1
    edges = _class_edges(plain.probability, plain.top, lines, _PROBABILITY_QUANTILES)
    far = _class_edges(out[PLAIN], plain.top, lines, _FAR_QUANTILES)
    width = far.shape[1] + 1
    count = (edges.shape[1] + 1) * width

    def found(kind: str) -> IntArray:
        pool = honest.pools[kind]
        line = np.minimum(pool.top, lines - 1)
        cell: IntArray = bins(pool.probability, edges[line]) * width + bins(out[kind], far[line])
        return cell

    cells = {kind: found(kind) for kind in honest.pools}
    laws = _skewed(cells, count, honest)
    rank = _rank_in_class(plain.probability, np.minimum(plain.top, lines - 1))
    whole = law(cells[PLAIN], count)
    smaller = 1 - rank  # of two drawn at random
    hard = law(cells[PLAIN], count, weights=smaller).reshape(-1, width).sum(axis=1)
    usual = whole.reshape(-1, width).sum(axis=0)
    attack = _COVER * whole + (1 - _COVER) * np.outer(hard, usual).ravel()
    return Hardness(
        threshold=math.inf,
        edges=_lines(edges),
        mean=tuple(np.round(mean.astype(np.float64), _DIGITS).tolist()),
        whiten=_lines(whiten),
        far=_lines(far),
        nats=nats_of(attack, laws),
    )


def fit_coverage(honest: Honest) -> Coverage | None:
    """Against a caller whose rows fall into all cells alike."""
    rng = np.random.default_rng([honest.seed, 2])
    mean, whiten = whitening(honest.joined("projection"))
    planes = (whiten @ rng.normal(size=(len(mean), _BITS))).T
    offsets = planes @ mean
    often = np.zeros(len(_ASKED) + 1)
    for pool in honest.pools.values():
        cell = ((pool.projection @ planes.T) > offsets) @ (1 << np.arange(_BITS))
        often = np.maximum(often, _new_share(cell, rng))
    often = np.clip(often, 0.01, 0.98)
    middle = np.array([*_ASKED, _WINDOW])
    alike = np.clip((1 - 0.5**_BITS) ** ((np.array([0.0, *_ASKED]) + middle) / 2), often, 0.995)
    return Coverage(
        threshold=math.inf,
        planes=_lines(planes),
        offsets=tuple(np.round(offsets.astype(np.float64), _DIGITS).tolist()),
        window=_WINDOW,
        asked=_ASKED,
        new=tuple(np.round(np.log(alike / often), _DIGITS).tolist()),
        known=tuple(np.round(np.log((1 - alike) / (1 - often)), _DIGITS).tolist()),
    )


def fit_accounts(honest: Honest) -> Accounts | None:
    """See `garrison.hardening.accounts`."""
    white = whitening(honest.joined("projection"))
    near = fit_near_duplicates(honest.pools, honest.seed)
    return fit_accounts_of(honest.pools, white, fit_ood_rate(honest), near, honest.seed)


FITTERS: dict[str, Fitter] = {
    OodRate.name: fit_ood_rate,
    OodCover.name: fit_ood_cover,
    Hardness.name: fit_hardness,
    NearDuplicates.name: lambda honest: fit_near_duplicates(honest.pools, honest.seed),
    SmallSteps.name: lambda honest: fit_small_steps(honest.pools, honest.seed),
    Accounts.name: fit_accounts,
    Coverage.name: fit_coverage,
    BoundedPrada.name: lambda honest: fit_bounded_prada(honest.pools, honest.seed),
}
"""By detector. A fitter gives None where the data do not allow it."""
USUAL = (OodRate.name, OodCover.name, Hardness.name, NearDuplicates.name, SmallSteps.name, Accounts.name)
"""Calibrated unless the owner says otherwise; the others found nothing on images that these did not find (docs/detectors)."""


def whitening(projection: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(mean, matrix) after which these rows are uncorrelated, with variance 1; single precision."""
    x = projection.astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(x.T).reshape(x.shape[1], x.shape[1]))
    scale = 1 / np.sqrt(np.maximum(values, max(float(values.max()), 1e-12) * 1e-6))
    return x.mean(axis=0).astype(np.float32), (vectors * scale).astype(np.float32)


def _new_share(cell: IntArray, rng: np.random.Generator, callers: int = 20) -> FloatArray:
    """Share of rows in a cell that is new to the caller, by how many it has asked; the last goes on as it was near the end."""
    rows = min(len(cell), _WINDOW)
    fresh = np.zeros((callers, rows))
    for caller in range(callers):
        fresh[caller, np.unique(cell[rng.permutation(len(cell))[:rows]], return_index=True)[1]] = 1
    where = np.searchsorted(_ASKED, np.arange(rows), side="right")
    counts = np.bincount(where, minlength=len(_ASKED) + 1)
    found: FloatArray = np.bincount(where, fresh.mean(axis=0), len(_ASKED) + 1) / np.maximum(counts, 1)
    return found


def _rank_in_class(values: FloatArray, line: IntArray) -> FloatArray:
    """Share of the rows of the same line that lie below, shape (rows,)."""
    rank = np.zeros(len(values))
    for number in np.unique(line):
        rows = np.flatnonzero(line == number)
        rank[rows[np.argsort(values[rows], kind="stable")]] = np.arange(len(rows)) / len(rows)
    return rank


def _class_edges(values: FloatArray, top: IntArray, lines: int, quantiles: tuple[float, ...]) -> FloatArray:
    """Quantiles by class, shape (lines, quantiles); those of all rows for a class with few."""
    found = np.tile(np.quantile(values, quantiles), (lines, 1))
    for number in range(lines if lines > 1 else 0):
        rows = top == number
        if rows.sum() >= _FEWEST_OF_A_CLASS:
            found[number] = np.quantile(values[rows], quantiles)
    rounded: FloatArray = np.round(found.astype(np.float64), _DIGITS)
    return rounded


def _edges(values: FloatArray, quantiles: FloatArray) -> FloatArray:
    found: FloatArray = np.unique(np.round(np.quantile(values.astype(np.float64), quantiles), _DIGITS))
    return found


def _lines(matrix: FloatArray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, np.round(matrix.astype(np.float64), _DIGITS).tolist()))
