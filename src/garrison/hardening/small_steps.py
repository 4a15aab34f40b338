"""The parameters of the detector `small-steps`: honest callers through its own code, against searches whose steps are of any length."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from garrison.guard.detectors.base import Seen
from garrison.guard.detectors.small_steps import SmallSteps
from garrison.guard.detectors.tables import bins
from garrison.hardening.laws import law, nats_of
from garrison.hardening.near import empty
from garrison.hardening.shifts import PLAIN
from garrison.types import FloatArray

_ROWS = 500
_CALLERS = 8
_FEWEST_OF_A_CLASS = 50
_LONGEST = 0.3
"""Longest step of a search, over the median distance between an honest row and the nearest of the last ones."""
_SHORTEST = 0.003
_SHARES = (0.01, 0.03, 0.1, 0.2, _LONGEST, 0.5, 0.75, 1.0, 1.25)
_SEARCHING = 0.7
"""Share of a search's rows that are such steps; the others look honest."""
_DIGITS = 6


def fit_small_steps(pools: Mapping[str, Seen], seed: int) -> SmallSteps | None:
    """See the module's docstring; None where there are too few rows to simulate callers.

    Args:
        pools: honest rows by kind of shift.
        seed: of all that is drawn.
    """
    rng = np.random.default_rng([seed, 5])
    plain = pools[PLAIN]
    if len(plain.top) < _ROWS:
        return None
    largest = max(float(np.abs(pool.projection).max()) for pool in pools.values())
    unit = round(max(largest, 1e-6) * 1.25 / 127, 7)
    bare = SmallSteps(threshold=math.inf, unit=unit, edges=(), nats=(0.0,))
    callers = {kind: [rng.permutation(len(plain.top))[:_ROWS] for _ in range(_CALLERS)] for kind in pools}
    for number in np.unique(plain.top).tolist():
        mine = np.flatnonzero(plain.top == number)
        if len(mine) >= _FEWEST_OF_A_CLASS:
            for kind in pools:
                callers[kind].append(rng.permutation(mine)[:_ROWS])
    honest = {
        kind: [_distances(bare, pools[kind].projection[rows]) for rows in drawn] for kind, drawn in callers.items()
    }
    usual = float(np.median(honest[PLAIN][0]))
    edges = np.round(usual * np.array(_SHARES), _DIGITS)
    count = len(edges) + 1
    laws = [law(bins(np.concatenate(of[:_CALLERS]), edges), count) for of in honest.values()]
    laws += [law(bins(one, edges), count) for of in honest.values() for one in of[_CALLERS:]]
    steps = usual * np.exp(np.linspace(math.log(_SHORTEST), math.log(_LONGEST), 1_000, endpoint=False))
    attack = _SEARCHING * law(bins(steps, edges), count) + (1 - _SEARCHING) * laws[0]
    return SmallSteps(threshold=math.inf, unit=unit, edges=tuple(edges.tolist()), nats=nats_of(attack, np.stack(laws)))


def _distances(detector: SmallSteps, projection: FloatArray) -> FloatArray:
    """Of one caller's rows but the first, as the detector measures them."""
    rows = len(projection)
    nothing = np.zeros(rows, np.float32)
    seen = Seen(
        np.zeros(rows, np.intp),
        np.arange(rows),
        projection.astype(np.float32),
        nothing,
        nothing,
        nothing.astype(np.intp),
    )
    columns = {name: empty(column, 1) for name, column in detector.columns(projection.shape[1]).items()}
    return detector.nearest(seen, columns)[1:]
