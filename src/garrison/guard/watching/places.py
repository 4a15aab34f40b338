"""Places of callers in arrays: one each, the same as long as the caller is remembered.

Invariants: no more than `most` callers; whom nothing was asked of for longest goes first, but for those that `keep` speaks for, as far as one look at the
oldest finds another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.base import Column
from garrison.types import Array

FIRST_CAPACITY = 64
LOOKED_AT = 64
"""So many of the oldest are looked at, to find one that need not be kept."""

PlaceArray = npt.NDArray[np.intp]
_NONE: list[int] = []


class Places:
    """Which caller stands where.

    Args:
        most: callers.
        keep: whether the caller at a place should rather stay.

    Attributes:
        capacity: entries that arrays must have; grows to `most` by doubling.
    """

    def __init__(self, most: int, keep: Callable[[int], bool]) -> None:
        self._most = most
        self._keep = keep
        self._places: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._free: list[int] = []
        self._turn = 0
        self._latest = np.zeros(0, dtype=np.int64)
        """By place, the turn in which its caller asked last; -1 for nobody's place."""
        self.capacity = 0
        self._extend()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Callers and their places, who asked longest ago first."""
        return iter(sorted(self._places.items(), key=lambda item: int(self._latest[item[1]])))

    def find(self, caller: str) -> int | None:
        return self._places.get(caller)

    def name(self, place: int) -> str:
        """Who stands there; "" for nobody."""
        return self._names.get(place, "")

    def take(self, callers: Sequence[str]) -> tuple[list[int], list[int]]:
        """Places of some callers who ask now; at most `most` different ones.

        Returns:
            Where each stands; and which places were another's, or are given for the first time.
        """
        self._turn += 1
        try:
            found = list(map(self._places.__getitem__, callers))
        except KeyError:
            return self._take_new(callers)
        self._latest[found] = self._turn
        return found, _NONE

    def _take_new(self, callers: Sequence[str]) -> tuple[list[int], list[int]]:
        known = [self._places[caller] for caller in callers if caller in self._places]
        self._latest[known] = self._turn  # before others are pushed out
        fresh: list[int] = []
        for caller in callers:
            if caller not in self._places:
                place = self._give()
                self._places[caller], self._names[place], self._latest[place] = place, caller, self._turn
                fresh.append(place)
        return [self._places[caller] for caller in callers], fresh

    def leave(self, caller: str) -> int | None:
        """Forget a caller; its place, if it had one."""
        place = self._places.pop(caller, None)
        if place is not None:
            del self._names[place]
            self._latest[place] = -1
            self._free.append(place)
        return place

    def restore(self, places: Sequence[tuple[str, int]]) -> None:
        """Put back what was remembered, before anybody asked. To be checked first: no place and no caller twice, each place below `most`.

        Args:
            places: who asked longest ago first.
        """
        self._places = dict(places)
        self._names = {place: caller for caller, place in places}
        while self.capacity <= max(self._names, default=-1):
            self._extend()
        self._free = [place for place in reversed(range(self.capacity)) if place not in self._names]
        for self._turn, (_, place) in enumerate(places):
            self._latest[place] = self._turn

    def _give(self) -> int:
        if not self._free:
            if self.capacity < self._most:
                self._extend()
            else:
                self.leave(self._names[self._dispensable()])
        return self._free.pop()

    def _dispensable(self) -> int:
        """Every place is taken: the one of whom nothing was asked for longest, and who need not be kept."""
        looked_at = min(LOOKED_AT, self.capacity)
        oldest = np.argpartition(self._latest, looked_at - 1)[:looked_at]
        oldest = oldest[np.argsort(self._latest[oldest])]
        gone: list[int] = [place for place in oldest.tolist() if self._latest[place] < self._turn]
        return next((place for place in gone if not self._keep(place)), gone[0])

    def _extend(self) -> None:
        old, self.capacity = self.capacity, min(self._most, max(FIRST_CAPACITY, 2 * self.capacity))
        self._latest = np.concatenate([self._latest, np.full(self.capacity - old, -1)])
        self._free.extend(reversed(range(old, self.capacity)))


class Table:
    """Arrays with one entry a place, by name.

    Args:
        columns: what they are.
        places: entries at first.
    """

    def __init__(self, columns: Mapping[str, Column], places: int) -> None:
        self.columns = dict(columns)
        self.arrays: dict[str, Array] = {name: _filled(column, places) for name, column in columns.items()}

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    @property
    def bytes_a_place(self) -> int:
        return sum(column.size for column in self.columns.values())

    def grow(self, places: int) -> None:
        """To so many entries; those that are there stay."""
        for name, column in self.columns.items():
            old = self.arrays[name]
            if len(old) < places:
                self.arrays[name] = np.concatenate([old, _filled(column, places - len(old))])

    def empty(self, places: PlaceArray | Sequence[int]) -> None:
        """Put some entries back to what a new caller's hold."""
        for name, column in self.columns.items():
            self.arrays[name][places] = column.fill

    def read(self, places: PlaceArray) -> list[bytes]:
        """Some entries, one item a column."""
        return [self.arrays[name][places].tobytes() for name in self.columns]

    def write(self, places: PlaceArray, data: Sequence[bytes]) -> None:
        """Put back what `read` gave.

        Raises:
            ValueError: it has another length.
        """
        if len(data) != len(self.columns):
            raise ValueError(f"expected {len(self.columns)} columns, found {len(data)}")
        for (name, column), raw in zip(self.columns.items(), data, strict=True):
            self.arrays[name][places] = np.frombuffer(raw, column.dtype).reshape(len(places), *column.shape)


def _filled(column: Column, places: int) -> Array:
    shape = (places, *column.shape)
    return np.zeros(shape, column.dtype) if column.fill == 0 else np.full(shape, column.fill, column.dtype)
