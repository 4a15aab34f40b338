"""The parameters of the detector `accounts`: many honest callers at once, and simulated thieves among them, run through the detector's own code."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from garrison.guard.detectors.accounts import FEWEST, MOST, Accounts
from garrison.guard.detectors.base import Seen
from garrison.guard.detectors.hardness import distance
from garrison.guard.detectors.near_duplicates import NearDuplicates
from garrison.guard.detectors.ood_rate import OodRate
from garrison.guard.detectors.steps import TERMS, terms
from garrison.guard.detectors.tables import bins
from garrison.hardening.callers import shares_of
from garrison.hardening.near import logistic, thief_rows, usual_distance, usual_terms
from garrison.hardening.shifts import PLAIN
from garrison.types import BoolArray, FloatArray, IntArray

_OUT = 0.6
"""Share of plain honest rows that are not far out."""
_CALLERS = 100
_LATE_ROWS = 2_000
_CROWDS = 12
_THIEVES = 24
_THIEFS_ROWS = 500
_THIEFS_ACCOUNTS = 20
_SEEDS = 50
_COVERS = (0, 1, 2)
"""Honest rows for each row of a thief; simulated thieves take turns."""
_BEFORE = (0.0, 0.3, 1.0)
"""Share of what can be remembered that honest callers have filled before; the simulated take turns, honest crowds as much as thieves: else the fuller the
memory, the more honest would everybody look."""
_MORE_ODD = 1.5
"""How many times as many odd rows as honest callers of the oddest kind an account must ask before others' rows count against it,"""
_SHARES = (0.1, 0.6)
"""within these shares of its rows: thieves who step ask 40 % and more."""
_BLOCK = 64
_DIGITS = 5


def fit_accounts(
    pools: Mapping[str, Seen],
    white: tuple[FloatArray, FloatArray],
    alone: OodRate | None,
    near: NearDuplicates | None,
    seed: int,
) -> Accounts | None:
    """See the module's docstring; None where one of the other detectors that it builds on is.

    Args:
        pools: honest rows by kind of shift.
        white: mean of honest projections, and the matrix after which they are uncorrelated with variance 1.
        alone: what a row's confidence alone says.
        near: of one caller alone.
        seed: of all that is drawn.
    """
    if alone is None or near is None:
        return None
    rng = np.random.default_rng([seed, 4])
    mean, whiten = (np.round(part.astype(np.float64), _DIGITS) for part in white)
    bare = Accounts(
        threshold=math.inf,
        unit=near.unit,
        mean=tuple(mean.tolist()),
        whiten=tuple(map(tuple, whiten.tolist())),
        out=round(float(np.quantile(distance(pools[PLAIN].projection, mean, whiten), _OUT)), _DIGITS),
        weights=(0.0,) * TERMS,
        edges=alone.edges,
        nats=alone.nats,
    )
    odd = {kind: _odd(bare, pool) for kind, pool in pools.items()}
    honest = []
    for number in range(_CROWDS):
        before = _rows_before(number, odd)
        place, projection, kind = _crowd(pools, odd, before + _LATE_ROWS, rng)
        found, rows = _terms_of(bare, place, projection)
        late = rows >= len(rows) * before // (before + _LATE_ROWS)
        honest += [found[late & (kind[rows] == number)] for number in range(len(pools))]
    honest = [part for part in honest if len(part)]
    usual = usual_distance(usual_terms(near, pools[PLAIN].projection, rng))
    thieves = [_among(bare, pools, odd, number, usual, rng) for number in range(_THIEVES)]
    if not honest or not any(map(len, thieves)):
        return None
    return msgspec.structs.replace(
        bare,
        weights=logistic(honest, [part for part in thieves if len(part)]),
        share=round(float(np.clip(_MORE_ODD * max(rows.mean() for rows in odd.values()), *_SHARES)), _DIGITS),
    )


def _odd(detector: Accounts, pool: Seen) -> BoolArray:
    """Rows that the detector looks at."""
    alone = np.array(detector.nats)[bins(pool.confidence, np.array(detector.edges))]
    far: BoolArray = distance(pool.projection, np.array(detector.mean), np.array(detector.whiten)) >= detector.out
    return far & (alone > 0)


def _crowd(
    pools: Mapping[str, Seen], odd: Mapping[str, BoolArray], rows: int, rng: np.random.Generator
) -> tuple[IntArray, FloatArray, IntArray]:
    """(place, projection, number of the kind) of the odd ones among so many rows of honest callers who take turns."""
    kinds = list(pools)
    place = np.arange(rows) % _CALLERS
    turn = np.arange(rows) // _CALLERS
    kind = place % len(kinds)
    most = len(pools[PLAIN].top)
    orders = np.stack([rng.permutation(most) for _ in range(_CALLERS)])
    picture = orders[place, turn % most]
    there = np.stack([odd[k] for k in kinds])[kind, picture]
    projection = np.stack([pools[k].projection for k in kinds])[kind[there], picture[there]]
    return place[there], projection, kind[there]


def _among(
    detector: Accounts,
    pools: Mapping[str, Seen],
    odd: Mapping[str, BoolArray],
    number: int,
    usual: float,
    rng: np.random.Generator,
) -> FloatArray:
    """Terms of the stepped rows of a thief with many accounts, among honest callers."""
    own = thief_rows(pools[PLAIN].projection, usual, number, rng)[:_THIEFS_ROWS]
    rows = len(own)
    crowd_place, crowd, _ = _crowd(pools, odd, rows * _COVERS[number % len(_COVERS)], rng)
    when = np.concatenate([np.arange(rows), np.sort(rng.random(len(crowd))) * rows])
    order = np.argsort(when, kind="stable")
    place = np.concatenate([_CALLERS + np.arange(rows) % _THIEFS_ACCOUNTS, crowd_place])[order]
    projection = np.concatenate([own, crowd])[order]
    stepped = (order >= _SEEDS) & (order < rows)
    far = distance(projection, np.array(detector.mean), np.array(detector.whiten)) >= detector.out
    early_place, early, _ = _crowd(pools, odd, _rows_before(number // len(_COVERS), odd), rng)
    found, kept = _terms_of(
        detector, np.concatenate([early_place, place[far]]), np.concatenate([early, projection[far]])
    )
    there = kept >= len(early)
    return found[there][stepped[far][kept[there] - len(early)]]


def _rows_before(number: int, odd: Mapping[str, BoolArray]) -> int:
    """Rows of honest callers before a simulation begins to count; the numbers of simulations take turns."""
    least = min(float(rows.mean()) for rows in odd.values())
    return math.ceil(_BEFORE[number % len(_BEFORE)] * MOST / max(least, 0.01))


def _terms_of(detector: Accounts, place: IntArray, projection: FloatArray) -> tuple[FloatArray, IntArray]:
    """(terms, row numbers) of the rows of which something can be said, as the detector measures them."""
    shared = shares_of(detector, len(detector.mean))
    found: list[FloatArray] = [np.zeros((0, TERMS))]
    rows: list[IntArray] = [np.zeros(0, dtype=np.intp)]
    for start in range(0, len(place), _BLOCK):
        part = slice(start, start + _BLOCK)
        squares, _, known = detector.beside(place[part], projection[part].astype(np.float32), shared)
        nearest, second = np.sqrt(squares) * detector.unit
        there = np.isfinite(second) & (known >= FEWEST)
        found.append(terms(nearest[there], second[there], known[there], MOST))
        rows.append(start + np.flatnonzero(there))
    return np.concatenate(found), np.concatenate(rows)
