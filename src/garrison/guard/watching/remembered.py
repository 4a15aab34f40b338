"""All that `watch` remembers of callers, in arrays with one entry a place."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from garrison.guard.watching.book import Armed, Book
from garrison.guard.watching.digests import SECRET_BYTES, Hasher
from garrison.guard.watching.evidence import Evidence
from garrison.guard.watching.groups import Groups
from garrison.guard.watching.memory import Rings
from garrison.guard.watching.places import PlaceArray, Places, Table
from garrison.guard.watching.sketch import Sketch
from garrison.guard.watching.waiting import Read, Waiting
from garrison.guard.watching.weighing import Weigher
from garrison.types import Array, ModelFacts

TICKS, MOST_TICK = 2**16, 1.0
"""Time goes in so many ticks a half-life, of at most so many seconds."""


class Settings(NamedTuple):
    """See `garrison.guard.defenses.watch.Watch`."""

    detectors: tuple[Armed, ...]
    half_life: float
    callers: int
    remembered: int


class Remembered:
    """See `garrison.guard.watching.state.WatchState`.

    Args:
        settings: of the defense.
        facts: of the model.

    Attributes:
        clock: seconds since the epoch: the host's.
        width: of the projection; -1 before the first row.
        tables, shared: what the detectors keep, one entry a detector.
    """

    def __init__(self, settings: Settings, facts: ModelFacts) -> None:
        if not settings.remembered:
            blind = (replace(armed, detector=armed.detector.among_repeats()) for armed in settings.detectors)
            settings = settings._replace(detectors=tuple(blind))
        self._settings = settings
        self._facts = facts
        self.clock: Callable[[], float] = time.time
        self._thresholds = np.array([armed.detector.threshold for armed in settings.detectors], dtype=np.float64)
        self._most = np.array([armed.detector.most for armed in settings.detectors], dtype=np.float64)
        self._tick = min(MOST_TICK, settings.half_life / TICKS)
        self._secretive = any(armed.detector.secret_projection for armed in settings.detectors)
        self._begin()

    def use(self, secret: bytes) -> None:
        """Key digests of inputs with this from now on."""
        self.secret = secret
        self._sketch: Sketch | None = None
        self._hasher = Hasher(self._facts, secret) if self._settings.remembered else None

    def _read(self, inputs: Mapping[str, Array]) -> Read:
        """Read inputs; there are none in a simulation, which has projections alone."""
        if not inputs:
            return Read(None, None)
        if self._secretive and self._sketch is None:
            self._sketch = Sketch(self._facts, self.secret, self.width)
        sketch = self._sketch(inputs) if self._sketch is not None else None
        return Read(sketch, None if self._hasher is None else self._hasher(inputs))

    def _begin(self) -> None:
        settings = self._settings
        self.use(secrets.token_bytes(SECRET_BYTES))
        self.places = Places(settings.callers, self._is_alarmed)
        n = self.places.capacity
        self.alone = Evidence(self._thresholds, settings.half_life, n)
        self.groups = Groups(self.alone, self._thresholds, settings.half_life, n)
        self.rings = Rings(settings.remembered, n)
        self.book = Book(settings.detectors, n)
        self.waiting = Waiting([armed.detector for armed in settings.detectors], self._facts, self._read, n)
        self._weigher = Weigher(settings.detectors, self.book)
        self.width = -1
        self.tables: list[Table] = []
        self.shared: list[dict[str, Array]] = []

    def open(self, width: int) -> None:
        """Make the detectors' arrays, now that the projection's width is known."""
        self.width = width
        self._sketch = None
        detectors, capacity = [armed.detector for armed in self._settings.detectors], self.places.capacity
        self.tables = [Table(detector.columns(width), capacity) for detector in detectors]
        self.shared = [
            {name: np.full(column.shape, column.fill, column.dtype) for name, column in d.shares(width).items()}
            for d in detectors
        ]
        for shared in self.shared:
            if "salt" in shared:  # which rows a detector forgets is not for a thief to know
                shared["salt"][:] = np.uint64(secrets.randbits(64))

    def grow(self) -> None:
        """All arrays to the capacity of the places."""
        capacity = self.places.capacity
        if len(self.groups.label) < capacity:
            self.groups.grow(capacity)
            for table in (self.book.table, self.alone.table, *self._by_row()):
                table.grow(capacity)

    def _empty(self, places: PlaceArray) -> None:
        """These places are another's from now on."""
        self.grow()
        for place in places.tolist():
            self.groups.leave(place)
        self.alone.empty(places)
        for table in (self.book.table, *self._by_row()):
            table.empty(places)
        for armed, shared in zip(self._settings.detectors, self.shared, strict=False):
            armed.detector.forget(places, shared)

    def _by_row(self) -> Sequence[Table | Waiting]:
        return (self.rings.table, self.rings.filter, self.waiting, *self.tables)

    def _is_alarmed(self, place: int) -> bool:
        if self.alone.rings_somewhere(place):
            return True
        return self.groups.size(place) > 1 and self.groups.evidence.rings_somewhere(int(self.groups.label[place]))
