"""Who moves a column: by leaving callers out.

What a caller explains is the part of the shift (PSI, less what chance makes) that goes when its rows are taken away and the others' are put to their full weight. So a shift that all
callers share is explained by none of them, however much they ask. Callers are taken away one after the other, the one who explains most first, until what is left is within
chance, or next to nothing of what was: those are named together. A shift that stays when eight are gone is nobody's: the world has changed, or it is a crowd.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt

from garrison.guard.drifting.callers import TopCallers
from garrison.guard.drifting.measures import psi
from garrison.guard.drifting.sketch import Sketch
from garrison.types import FloatArray

MOST_NAMED = 8
MOST_OF_IT = 0.8
"""Callers are named when so much of the shift goes with their rows; or half of it, and what is left is within chance."""
HALF = 0.5
_REST = 0.02
"""Below this share of rows, what is left says nothing."""
_LEAST_LEFT = 0.5
"""Several callers are named only where the others ask so much of all that their staying as they were says something."""
SHOWN = 5


class CallerShift(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one caller has to do with a shift.

    Attributes:
        caller: its name.
        traffic: its share of recent rows.
        explains: share of the shift that goes when its rows are taken away, 0 to 1.
    """

    caller: str
    traffic: float
    explains: float


class Blame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who moves a column.

    Attributes:
        named: the callers without whom most of the shift would not be; empty where it is nobody's.
        callers: who explain most, each alone, the first first.
    """

    named: tuple[str, ...]
    callers: tuple[CallerShift, ...]


NOBODY = Blame((), ())


def blame(sketch: Sketch, callers: TopCallers, column: int) -> Blame:
    """Who moves this column."""
    layout = sketch.layout
    bins = slice(int(layout.start[column]), int(layout.start[column]) + len(layout.columns[column].shares))
    there = np.flatnonzero(callers.rows)
    asked = 1 - sketch.prior
    if asked <= _REST or not len(there):
        return NOBODY
    shift = _Shift(sketch, column, layout.shares[bins])
    now = np.maximum(sketch.shares[bins] - sketch.prior * layout.shares[bins], 0) / asked
    own = callers.shares[there, bins].astype(np.float64) / asked
    whole = shift.of(now[None, :])[0]
    if whole <= 0:
        return NOBODY
    alone = np.clip(1 - shift.of(np.maximum(now - own, 0)) / whole, 0, 1)
    order = [k for k in np.argsort(-alone, kind="stable")[:SHOWN].tolist() if alone[k] > 0]
    shown = tuple(CallerShift(callers.names[there[k]], float(own[k].sum()), float(alone[k])) for k in order)
    named = _together(shift, now, own, whole)
    return Blame(tuple(callers.names[there[k]] for k in named), shown)


def _together(shift: _Shift, now: FloatArray, own: FloatArray, whole: float) -> list[int]:
    """The fewest callers, taken one after the other, with whom the shift goes; none where it stays."""
    named: list[int] = []
    while len(named) < min(MOST_NAMED, len(own)):
        left = shift.of(np.maximum(now - own, 0))
        left[named] = np.inf
        k = int(left.argmin())
        named.append(k)
        now = np.maximum(now - own[k], 0)
        if len(named) > 1 and now.sum() < _LEAST_LEFT:
            return []
        explained = 1 - left[k] / whole
        if explained >= MOST_OF_IT or (explained >= HALF and left[k] <= shift.chance(float(now.sum()))):
            return named
    return []


class _Shift:
    """The shift of one column, less what chance makes of it.

    Args:
        reference: the column's shares.
    """

    def __init__(self, sketch: Sketch, column: int, reference: FloatArray) -> None:
        self._reference = reference
        self._noise, self._each = sketch.noise(column)
        self._spread = 3 * math.sqrt(2 / max(1, int(np.count_nonzero(reference)) - 1))
        self._first: npt.NDArray[np.intp] = np.zeros(1, np.intp)

    def of(self, mass: FloatArray) -> FloatArray:
        """Of some masses that need not sum to 1, shape (masses, bins); 0 where next to nothing is left."""
        total = mass.sum(axis=1)
        rest = np.maximum(total, _REST)
        found = psi(mass / rest[:, None], self._reference, self._first)[:, 0] - self._noise - self._each / rest
        return np.where(total < _REST, 0.0, np.maximum(found, 0.0))

    def chance(self, rest: float) -> float:
        """What that may be by chance, three standard errors of it, where so much of the rows is left."""
        return self._spread * (self._noise + self._each / max(rest, _REST))
