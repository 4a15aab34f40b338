"""The parameters of the detector `small-steps`: honest callers through its own code, against searches whose steps are of any length."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from garrison.guard.detectors.base import Seen
from garrison.guard.detectors.small_steps import SmallSteps
from garrison.guard.detectors.tables import bins
from garrison.hardening.callers import ROWS, columns_of, draw, seen_as, unit_of
from garrison.hardening.laws import law, nats_of
from garrison.hardening.shifts import PLAIN
from garrison.types import FloatArray

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
    if len(pools[PLAIN].top) < ROWS:
        return None
    bare = SmallSteps(threshold=math.inf, unit=unit_of(pools), edges=(), nats=(0.0,))
    drawn = draw(pools, rng, each=_CALLERS, fewest_of_a_class=_FEWEST_OF_A_CLASS)
    mixed = {
        kind: [_distances(bare, pools[kind].projection[rows]) for rows in callers]
        for kind, callers in drawn.mixed.items()
    }
    of_a_class = [_distances(bare, pools[kind].projection[rows]) for kind, rows in drawn.of_a_class]
    usual = float(np.median(mixed[PLAIN][0]))
    edges = np.round(usual * np.array(_SHARES), _DIGITS)
    count = len(edges) + 1
    honest = [np.concatenate(callers) for callers in mixed.values()]
    laws = [law(bins(part, edges), count) for part in (*honest, *of_a_class)]
    steps = usual * np.exp(np.linspace(math.log(_SHORTEST), math.log(_LONGEST), 1_000, endpoint=False))
    attack = _SEARCHING * law(bins(steps, edges), count) + (1 - _SEARCHING) * laws[0]
    return msgspec.structs.replace(bare, edges=tuple(edges.tolist()), nats=nats_of(attack, np.stack(laws)))


def _distances(detector: SmallSteps, projection: FloatArray) -> FloatArray:
    """Of one caller's rows but the first, as the detector measures them."""
    rows, width = projection.shape
    seen = seen_as(np.zeros(rows, np.intp), np.arange(rows), projection)
    return detector.nearest(seen, columns_of(detector, width, 1))[1:]
