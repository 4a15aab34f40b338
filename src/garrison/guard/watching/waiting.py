"""Rows that may be weighed later, many at once: one pass of the detectors over the rows of four batches costs little more than one over those of one.

A row may wait as long as no sum can reach its threshold by it. Each detector says how many nats one row brings at most (`Detector.most`), some that they come from doubtful rows alone (`Detector.sure`), and time only lowers sums: so after each
pass it is known how many rows of each caller certainly ring no alarm, whatever they are. Beyond these the caller's next row is weighed at once, and all that wait with it. So
each caller's alarms ring at the very row at which they would ring if every batch were weighed as it comes. Rows of callers who are alarmed or linked to others do not wait.

What is found late: that two accounts behave alike. They are linked as if the rows that waited had come in one batch with the one that ended the waiting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from garrison.guard.detectors.base import Detector
from garrison.guard.watching.evidence import Order
from garrison.guard.watching.memory import DigestArray
from garrison.guard.watching.places import PlaceArray
from garrison.types import BoolArray, FloatArray, IntArray

MOST_WAITING = 256
"""Rows of all callers that wait at most."""
MOST_OF_ONE = 16
"""Rows of one caller that wait at most."""
_MARGIN = 1e-9
"""What rounding may add to a sum, as a share of the threshold."""


class Looked(NamedTuple):
    """Rows, as far as their inputs are needed; all arrays have one entry a row.

    Attributes:
        place: of the row's caller.
        projection: the public one.
        sketch: by the matrix that `watch` keeps to itself, or the public one where no detector asks for it.
        confidence: see `garrison.guard.detectors.base.Seen`.
        values: the model's answers, undefended.
        digests: None where no rows are remembered.
    """

    place: PlaceArray
    projection: FloatArray
    sketch: FloatArray
    confidence: FloatArray
    values: FloatArray
    digests: DigestArray | None

    def some(self, rows: PlaceArray) -> Looked:
        digests = None if self.digests is None else self.digests[rows]
        return Looked(
            self.place[rows],
            self.projection[rows],
            self.sketch[rows],
            self.confidence[rows],
            self.values[rows],
            digests,
        )


def joined(parts: Sequence[Looked]) -> Looked:
    """Rows one after the other."""
    if len(parts) == 1:
        return parts[0]
    place, projection, sketch, confidence, values, digests = zip(*parts, strict=True)
    return Looked(
        np.concatenate(place),
        np.concatenate(projection),
        np.concatenate(sketch),
        np.concatenate(confidence),
        np.concatenate(values),
        None if digests[0] is None else np.concatenate(digests),
    )


class Waiting:
    """Rows that wait, and how many more of each caller may.

    Args:
        detectors: of the chain.
        places: entries at first.

    Attributes:
        rows: how many wait.
        tick: the time in which all of them came.
    """

    def __init__(self, detectors: Sequence[Detector], places: int) -> None:
        self._below = np.array([(1 - _MARGIN) * detector.threshold for detector in detectors])
        self._most = np.array([max(detector.most, _MARGIN) for detector in detectors])
        self._every = [i for i, detector in enumerate(detectors) if detector.sure == np.inf]
        self._sure = np.float32(max((d.sure for d in detectors if d.sure < np.inf), default=-np.inf))
        self._fresh = self._rows_below(np.zeros((1, len(detectors))))
        self._room = np.tile(self._fresh, (places, 1))
        self._parts: list[Looked] = []
        self.rows = 0
        self.tick = 0.0

    def add(self, looked: Looked, order: Order, tick: float) -> bool:
        """Let rows wait, if all of them may; whether they do.

        Args:
            order: by caller.
            tick: when they came; to be the same for all who wait.
        """
        rows = len(looked.place)
        if self.rows + rows > MOST_WAITING or order.turns > self._fresh[0, 0]:
            return False
        left = self._room.take(looked.place, axis=0)
        left[:, 0] -= 1
        if order.turns > 1:
            left[:, 0] -= order.turn
        sure = looked.confidence > self._sure
        if np.count_nonzero(sure) < rows:
            left[:, 1] -= _doubtful_so_far(looked.place, sure)
        if left.min() < 0:
            return False
        self._room[looked.place] = left  # of several rows of one caller, the last is written last
        self._parts.append(looked)
        self.rows += rows
        self.tick = tick
        return True

    def take(self) -> list[Looked]:
        """Those who wait, in the order in which they came. Nobody waits then."""
        parts, self._parts, self.rows = self._parts, [], 0
        return parts

    def weighed(self, places: PlaceArray, sums: FloatArray) -> None:
        """All rows of these callers are weighed; so many more may wait.

        Args:
            sums: of nats, shape (places, detectors).
        """
        self._room[places] = self._rows_below(sums)

    def grow(self, places: int) -> None:
        """See `Table`."""
        more = np.tile(self._fresh, (max(0, places - len(self._room)), 1))
        self._room = np.concatenate([self._room, more])

    def empty(self, places: PlaceArray) -> None:
        """See `Table`."""
        self._room[places] = self._fresh

    def _rows_below(self, sums: FloatArray) -> IntArray:
        """How many rows certainly leave each of these sums below its threshold, whatever they are, and how many doubtful ones: shape (places, 2)."""
        rows = np.subtract(self._below, sums)
        rows /= self._most
        np.maximum(rows, 0, out=rows)
        any_row = rows[:, self._every].min(axis=1, initial=MOST_OF_ONE)
        return np.stack([any_row, rows.min(axis=1, initial=MOST_OF_ONE)], axis=1).astype(np.int64)


def _doubtful_so_far(place: PlaceArray, sure: BoolArray) -> list[int]:
    """How many rows of its caller, each row counted too, are doubtful."""
    seen: Counter[int] = Counter()
    found = []
    for one, is_sure in zip(place.tolist(), sure.tolist(), strict=True):
        seen[one] += not is_sure
        found.append(seen[one])
    return found
