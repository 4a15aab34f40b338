"""How much two distances speak for a step: what `near-duplicates` and `accounts` have in common.

An honest row has several remembered rows about as near as the nearest; a stepped one has its source, and then nothing for a while. The logarithms of the
distance to the nearest, of the gap to the second nearest and of how many rows are remembered enter a logistic regression, with their squares and
products. Beyond a gap of a factor of e nothing more is learnt from how near the nearest is: no simulated step was that short for sure, and a square
that goes on falls again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from garrison.guard.detectors.recalled import FAR
from garrison.types import BoolArray, FloatArray, IntArray

TERMS = 10
MOST_NATS = 4.0
_WIDEST = 1.0
_SAME = 0.5
_PLACES = ((0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (2, 2), (3, 3), (1, 2), (1, 3), (2, 3))
"""Of which two of (1, near, gap, known) each term is the product."""


def check_steps(name: str, unit: float, weights: Sequence[float], stepped: float) -> None:
    """Raise ValueError unless these can be parameters of a detector of steps."""
    if not 0 < unit < math.inf or not 0 < stepped <= 1:
        raise ValueError(f"{name}: unit must be above 0 and finite, stepped above 0 and at most 1")
    if len(weights) != TERMS or not all(map(math.isfinite, weights)):
        raise ValueError(f"{name}.weights: expected {TERMS} finite numbers, found {len(weights)}")


def terms(nearest: FloatArray, second: FloatArray, known: IntArray, most: int) -> FloatArray:
    """What the log odds are linear in, shape (rows, TERMS).

    Args:
        nearest, second: distances, above 0 and finite.
        known: rows that are remembered, or that were asked.
        most: rows that are remembered at most.
    """
    far = np.log(second)
    near = np.maximum(np.log(nearest), far - _WIDEST)
    v = (np.ones(len(near)), near, far - near, np.log(np.clip(known, 1, most)))
    return np.stack([v[a] * v[b] for a, b in _PLACES], axis=1)


class Nearest(NamedTuple):
    """What is near each row.

    Attributes:
        squares: squared distances to the nearest and the second nearest that are not equal, shape (2, rows); infinite where there is none.
        first: shape (rows,), where the nearest stands.
        equal: shape (rows,), whether one is equal; None for nowhere.
    """

    squares: FloatArray
    first: IntArray
    equal: BoolArray | None


def nearest(apart: FloatArray, own: FloatArray) -> Nearest:
    """Find the nearest.

    Args:
        apart: squared distances between whole numbers, less `own`, shape (rows, others); used up.
        own: shape (rows,).
    """
    line, flat, equal = np.arange(0, apart.size, apart.shape[1]), apart.reshape(-1), None
    found = np.empty((2, len(own)), dtype=np.float32)
    first = apart.argmin(axis=1)
    np.add(flat.take(first + line), own, out=found[0])
    if found[0].min() < _SAME:  # whole numbers are exact here
        some = np.flatnonzero(found[0] < _SAME)
        lines = apart[some]
        lines[lines + own[some, np.newaxis] < _SAME] = FAR
        apart[some] = lines
        first[some] = lines.argmin(axis=1)
        np.add(flat.take(first + line), own, out=found[0])
        equal = np.zeros(len(own), dtype=np.bool_)
        equal[some] = True
    flat[first + line] = FAR
    np.add(flat.take(apart.argmin(axis=1) + line), own, out=found[1])
    return Nearest(found, first, equal)


class Odds:
    """The regression, for many rows at once, from squared distances in whole numbers.

    Args:
        weights: of the log odds of a stepped row, by the terms that `terms` lists.
        stepped: share of a thief's rows that are stepped; the others are taken for honest ones.
        unit: of the whole numbers in which distances are measured.
        most: rows that are remembered at most.

    Attributes:
        most: nats that one row brings at most.
    """

    def __init__(self, weights: Sequence[float], stepped: float, unit: float, most: int) -> None:
        form = np.zeros((4, 4))
        for weight, place in zip(weights, _PLACES, strict=True):
            form[place] = weight
        turn = np.diag([1.0, 0.5, 0.5, 1.0])  # logarithms of squares are twice as large,
        turn[1, 0] = math.log(unit)  # and the nearest is to be in the projection's unit
        form = turn.T @ form @ turn
        form = form + form.T
        known = np.log(np.maximum(np.arange(most + 1), 1))
        self._constant = 0.5 * form[0, 0] + form[0, 3] * known + 0.5 * form[3, 3] * known**2
        self._near = form[0, 1] + form[1, 3] * known
        self._gap = form[0, 2] + form[2, 3] * known
        self._squares = 0.5 * form[1, 1], form[1, 2], 0.5 * form[2, 2]
        self._most, self._stepped = most, stepped
        self.most = math.log1p(stepped * math.expm1(MOST_NATS))

    def __call__(self, squares: FloatArray, known: IntArray | int) -> FloatArray:
        """Log odds of a stepped row, shape (rows,), at most `MOST_NATS` either way.

        Args:
            squares: squared distances to the nearest and the second nearest in whole numbers, above 0 and finite; shape (2, rows).
            known: see `terms`; at most `most`.
        """
        near, far = np.log(squares)
        near = np.maximum(near, far - 2 * _WIDEST)
        gap = far - near
        one, both, other = self._squares
        found: FloatArray = near * (self._near[known] + one * near + both * gap)
        found += gap * (self._gap[known] + other * gap)
        found += self._constant[known]
        np.maximum(found, -MOST_NATS, out=found)
        return np.minimum(found, MOST_NATS, out=found)

    def nats(self, odds: FloatArray) -> FloatArray:
        """What rows with these log odds say for a thief of whom only some rows are stepped."""
        found: FloatArray = np.log1p(self._stepped * np.expm1(odds))
        return found
