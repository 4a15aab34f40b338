"""Rows that may be weighed later, many at once: one pass of the detectors over the rows of four batches costs little more than one over those of one.

A row may wait as long as no sum can reach its threshold by it. Each detector says how many nats one row brings at most (`Detector.most`), some that they come from doubtful rows alone (`Detector.sure`), and time only lowers sums: so after each
pass it is known how many rows of each caller certainly ring no alarm, whatever they are. Beyond these the caller's next row is weighed at once, and all that wait with it. So
each caller's alarms ring at the very row at which they would ring if every batch were weighed as it comes. Rows of callers who are alarmed or linked to others do not wait.

What is found late: that two accounts behave alike. They are linked as if the rows that waited had come in one batch with the one that ended the waiting.

Inputs wait as copies, and are read together too, as far as `MOST_HELD` bytes reach; larger ones are read as they come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from garrison.guard.detectors.base import Detector
from garrison.guard.watching.digests import DigestArray
from garrison.guard.watching.places import PlaceArray
from garrison.types import Array, FloatArray, ModelFacts

MOST_WAITING = 256
"""Rows of all callers that wait at most."""
MOST_OF_ONE = 16
"""Rows of one caller that wait at most."""
MOST_HELD = 2**20
"""Bytes of their inputs."""
_MARGIN = 1e-9
"""What rounding may add to a sum, as a share of the threshold."""


class Read(NamedTuple):
    """What stays of inputs.

    Attributes:
        sketch: projections by the matrix that `watch` keeps to itself; None where no detector asks for them.
        digests: None where no rows are remembered.
    """

    sketch: FloatArray | None
    digests: DigestArray | None


class Looked(NamedTuple):
    """Rows, as far as their inputs are needed; all arrays have one entry a row.

    Attributes:
        place: of the row's caller.
        projection: the public one.
        sketch: see `Read`.
        confidence: see `garrison.guard.detectors.base.Seen`.
        values: the model's answers, undefended.
        digests: see `Read`.
    """

    place: PlaceArray
    projection: FloatArray
    sketch: FloatArray | None
    confidence: FloatArray
    values: FloatArray
    digests: DigestArray | None

    def some(self, rows: PlaceArray | slice) -> Looked:
        return Looked(
            self.place[rows],
            self.projection[rows],
            None if self.sketch is None else self.sketch[rows],
            self.confidence[rows],
            self.values[rows],
            None if self.digests is None else self.digests[rows],
        )


class Inputs:
    """Inputs of rows, until they are read together.

    Args:
        facts: of the model.
        read: reads inputs.
    """

    def __init__(self, facts: ModelFacts, read: Callable[[Mapping[str, Array]], Read]) -> None:
        self._facts, self._read = facts, read
        self._most = 0
        self._held: dict[str, Array] = {}
        self._filled = 0
        self._done: list[Read] = []

    def add(self, inputs: Mapping[str, Array], rows: int) -> None:
        """Copy them, or read those that are too large for it."""
        if inputs and not self._held:
            self._make_room()
        if self._filled + rows > self._most:
            self._read_held()
        if rows > self._most or not inputs:
            self._done.append(self._read(inputs))
            return
        end = self._filled + rows
        for name, held in self._held.items():
            held[self._filled : end] = inputs[name]
        self._filled = end

    def take(self) -> Read:
        """What stays of all. None are held then."""
        self._read_held()
        done, self._done = self._done, []
        if len(done) == 1:
            return done[0]
        sketches, digests = zip(*done, strict=True)
        return Read(_joined(sketches), _joined(digests))

    def _make_room(self) -> None:
        specs = self._facts.inputs
        fit = MOST_HELD // sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in specs)
        self._most = min(MOST_WAITING, fit) if fit > 1 else 0
        self._held = {spec.name: np.empty((self._most, *spec.shape), spec.dtype) for spec in specs}

    def _read_held(self) -> None:
        if self._filled:
            self._done.append(self._read({name: x[: self._filled] for name, x in self._held.items()}))
            self._filled = 0


class Waiting:
    """Rows that wait, and how many more of each caller may.

    Args:
        detectors: of the chain.
        facts, read: see `Inputs`.
        places: entries at first.

    Attributes:
        rows: how many wait.
        tick: the time in which all of them came.
    """

    def __init__(
        self, detectors: Sequence[Detector], facts: ModelFacts, read: Callable[[Mapping[str, Array]], Read], places: int
    ) -> None:
        self._below = np.array([(1 - _MARGIN) * detector.threshold for detector in detectors])
        most = [max(detector.most, _MARGIN) for detector in detectors]
        of_any = [_MARGIN if d.sure < np.inf else nats for d, nats in zip(detectors, most, strict=True)]
        self._most = np.array([of_any, most])[:, np.newaxis]
        self._sure = np.float32(max((d.sure for d in detectors if d.sure < np.inf), default=-np.inf))
        self._fresh = self._rows_below(np.zeros((1, len(detectors))))
        self._room: tuple[list[int], list[int]] = ([], [])
        self.grow(places)
        self._inputs = Inputs(facts, read)
        self._parts: list[tuple[list[int], FloatArray, FloatArray, FloatArray]] = []
        self.rows = 0
        self.tick = 0.0

    def may(self, place: list[int], confidence: FloatArray) -> bool:
        """Whether all of these rows may wait. They are counted then; else they are to be weighed, which counts their callers' anew."""
        if self.rows + len(place) > MOST_WAITING:
            return False
        room, doubtful = self._room
        for one, sure in zip(place, (confidence > self._sure).tolist(), strict=True):
            if not room[one]:
                return False
            room[one] -= 1
            if not sure:
                if not doubtful[one]:
                    return False
                doubtful[one] -= 1
        return True

    def add(
        self,
        place: list[int],
        inputs: Mapping[str, Array],
        projection: FloatArray,
        confidence: FloatArray,
        values: FloatArray,
        tick: float,
    ) -> None:
        """Let rows wait.

        Args:
            place: of each row's caller.
            inputs: read later; they may be written to again.
            projection, confidence, values: see `Looked`.
            tick: when they came; to be the same for all who wait.
        """
        self._inputs.add(inputs, len(place))
        self._parts.append((place, projection, confidence, values))
        self.rows += len(place)
        self.tick = tick

    def take(self) -> Looked:
        """Those who wait, in the order in which they came; there is at least one. Nobody waits then."""
        sketch, digests = self._inputs.take()
        parts, self._parts, self.rows = self._parts, [], 0
        place, projection, confidence, values = parts[0] if len(parts) == 1 else _whole(parts)
        return Looked(np.array(place, dtype=np.intp), projection, sketch, confidence, values, digests)

    def weighed(self, places: PlaceArray, sums: FloatArray) -> None:
        """All rows of these callers are weighed; so many more may wait.

        Args:
            sums: of nats, shape (places, detectors).
        """
        room, doubtful = self._room
        for place, rows, fewer in zip(places.tolist(), *self._rows_below(sums), strict=True):
            room[place], doubtful[place] = rows, fewer

    def grow(self, places: int) -> None:
        """See `Table`."""
        for room, fresh in zip(self._room, self._fresh, strict=True):
            room.extend(fresh * (places - len(room)))

    def empty(self, places: PlaceArray) -> None:
        """See `Table`."""
        for room, (fresh,) in zip(self._room, self._fresh, strict=True):
            for place in places.tolist():
                room[place] = fresh

    def _rows_below(self, sums: FloatArray) -> list[list[int]]:
        """How many rows certainly leave each of these sums below its threshold, whatever they are, and how many doubtful ones: one list each."""
        left = np.maximum(self._below - sums, 0.0)
        found: list[list[int]] = (left / self._most).min(axis=2, initial=MOST_OF_ONE).astype(np.int64).tolist()
        return found


def _joined(parts: Sequence[Array | None]) -> Array | None:
    return None if parts[0] is None else np.concatenate(parts)  # type: ignore[arg-type]


def _whole(
    parts: Sequence[tuple[list[int], FloatArray, FloatArray, FloatArray]],
) -> tuple[list[int], FloatArray, FloatArray, FloatArray]:
    place, projection, confidence, values = zip(*parts, strict=True)
    every = [one for some in place for one in some]
    return every, np.concatenate(projection), np.concatenate(confidence), np.concatenate(values)
