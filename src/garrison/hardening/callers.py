"""Honest callers, drawn from pools of rows of several kinds of shift: what detectors of steps are fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from garrison.guard.detectors.base import Column, Detector, Seen
from garrison.hardening.shifts import PLAIN
from garrison.types import Array, FloatArray, IntArray

ROWS = 500
"""Rows that an honest caller asks."""
_LARGEST = 127
_MARGIN = 1.25
_DIGITS = 7
_SMALL = 1e-3
"""Below it rounding would take too much, in the end all."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Numbers of rows in the pools.

    Attributes:
        mixed: by kind of shift, the rows of each of several callers.
        of_a_class: (kind, rows) of callers who ask about one class alone, each class with each kind.
    """

    mixed: Mapping[str, list[IntArray]]
    of_a_class: list[tuple[str, IntArray]]


def draw(pools: Mapping[str, Seen], rng: np.random.Generator, *, each: int, fewest_of_a_class: int) -> Drawn:
    """So many callers of each kind, the plain one first, and of each class that has as many rows one of each kind."""
    top = pools[PLAIN].top
    kinds = (PLAIN, *(kind for kind in pools if kind != PLAIN))
    mixed = {kind: [rng.permutation(len(top))[:ROWS] for _ in range(each)] for kind in kinds}
    classes = [np.flatnonzero(top == number) for number in np.unique(top)]
    alone = [
        (kind, rng.permutation(rows)[:ROWS]) for rows in classes if len(rows) >= fewest_of_a_class for kind in kinds
    ]
    return Drawn(mixed, alone)


def unit_of(pools: Mapping[str, Seen]) -> float:
    """Of the whole numbers, up to 127, that projections are remembered as: honest ones fit in, with a margin."""
    largest = max(float(np.abs(pool.projection).max()) for pool in pools.values())
    unit = max(largest, 1e-6) * _MARGIN / _LARGEST
    return round(unit, _DIGITS) if unit > _SMALL else unit


def seen_as(place: IntArray, asked: IntArray, projection: FloatArray) -> Seen:
    """Rows of which a detector looks at the projection alone."""
    nothing = np.zeros(len(place), np.float32)
    return Seen(place, asked, projection.astype(np.float32), nothing, nothing, nothing.astype(np.intp))


def columns_of(detector: Detector, width: int, callers: int) -> dict[str, Array]:
    """A detector's columns before anybody asked."""
    return {name: empty(column, callers) for name, column in detector.columns(width).items()}


def shares_of(detector: Detector, width: int) -> dict[str, Array]:
    """What a detector remembers of all callers together, before anybody asked."""
    return {name: empty(column) for name, column in detector.shares(width).items()}


def empty(column: Column, callers: int | None = None) -> Array:
    """A column as it is before anybody asked; a shared one where `callers` is None."""
    return np.full(column.shape if callers is None else (callers, *column.shape), column.fill, dtype=column.dtype)
