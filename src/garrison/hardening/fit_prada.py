"""The parameters of the detector `bounded-prada`: honest callers and simulated thieves, run through the detector's own code.

A thief's step is simulated in the projection, as for `near-duplicates`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from garrison.guard.detectors.base import Seen
from garrison.guard.detectors.bounded_prada import BoundedPrada
from garrison.guard.detectors.tables import bins
from garrison.hardening.callers import columns_of
from garrison.hardening.laws import law, nats_of
from garrison.types import FloatArray

_CALLERS = 20
_ROWS = 500
_SEEDS = 100
_STEPS = (0.2, 1.0)
"""Shortest and longest step of a simulated thief, over the deviation of all rows from their mean."""
_QUANTILES = 12
_DIGITS = 5


def fit_bounded_prada(pools: Mapping[str, Seen], seed: int) -> BoundedPrada | None:
    """See the module's docstring; None where there are too few rows to simulate callers.

    Neighbouring rows share nearly all of the distances that are looked at, so each says only its part: a table's nats over `memory`, times ten.

    Args:
        pools: honest rows by kind of shift.
        seed: of all that is drawn.
    """
    rng = np.random.default_rng([seed, 4])
    first = next(iter(pools.values()))
    if len(first.top) < _ROWS:
        return None
    bare = BoundedPrada(threshold=math.inf, edges=(), nats=(0.0,))
    honest = [shape_of(bare, [_drawn(pool, rng) for _ in range(_CALLERS)]) for pool in pools.values()]
    thieves = [_thief(_drawn(first, rng), rng) for _ in range(2 * _CALLERS)]
    stepped = shape_of(bare, thieves)[_SEEDS * len(thieves) :]
    values = np.concatenate([*honest, stepped])
    values = values[values >= 0]
    edges = np.unique(np.round(np.quantile(values, np.linspace(0, 1, _QUANTILES + 1)[1:-1]), _DIGITS))
    laws = np.stack([law(bins(part[part >= 0], edges), len(edges) + 1) for part in honest])
    nats = nats_of(law(bins(stepped[stepped >= 0], edges), len(edges) + 1), laws)
    share = 10 / bare.memory
    return msgspec.structs.replace(
        bare, edges=tuple(edges.tolist()), nats=tuple(round(n * share, _DIGITS) for n in nats)
    )


def shape_of(detector: BoundedPrada, callers: list[Seen]) -> FloatArray:
    """The detector's statistic of each row, all callers' first rows first; -1 where it has none. Callers are equally long."""
    width, rows = callers[0].projection.shape[1], len(callers[0].top)
    columns = columns_of(detector, width, len(callers))
    places = np.arange(len(callers))
    found = [
        detector.shapes(
            places, np.stack([c.projection[row] for c in callers]), np.array([c.top[row] for c in callers]), columns
        )
        for row in range(rows)
    ]
    return np.concatenate(found)


def _drawn(pool: Seen, rng: np.random.Generator) -> Seen:
    rows = rng.permutation(len(pool.top))[:_ROWS]
    return msgspec.structs.replace(pool, projection=pool.projection[rows], top=pool.top[rows])


def _thief(own: Seen, rng: np.random.Generator) -> Seen:
    """Rows stepped from any row asked before; the model names the source's class for half of them."""
    x, top = own.projection.copy(), own.top.copy()
    spread = float(np.sqrt(x.var(axis=0).sum()))
    low, high = _STEPS
    length = spread * low * (high / low) ** rng.random()
    steps = length / math.sqrt(x.shape[1]) * rng.normal(size=x.shape)
    for row in range(_SEEDS, len(x)):
        source = int(rng.integers(row))
        x[row] = x[source] + steps[row]
        if rng.random() < 1 / 2:
            top[row] = top[source]
    return msgspec.structs.replace(own, projection=x, top=top)
