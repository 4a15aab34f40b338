"""Which rows a caller was answered before: a ring of their digests for each caller, so that what was answered honestly stays so."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.base import Column
from garrison.guard.watching.digests import DigestArray
from garrison.guard.watching.places import PlaceArray, Table
from garrison.types import BoolArray

_FILTER_BITS = 8
"""Bits of a caller's filter for each digest of its ring: about one row in six that is not in the ring has the ring read."""
_BYTE, _IN_BYTE = np.uint32(3), np.uint32(7)
_BITS = (1 << np.arange(8)).astype(np.uint8)


class Rings:
    """The latest digests of each caller.

    Beside the ring stands a small filter (Bloom, CACM 1970, with one bit a digest): whoever is not in it is not in the ring, which then need not be read. Its bits stay until
    the ring has gone around once; then it is made anew from the ring.

    Args:
        length: digests a caller; 0 for none.
        places: entries at first.

    Attributes:
        table: what is kept.
        filter: what follows from it.
    """

    def __init__(self, length: int, places: int) -> None:
        self.length = length
        self._bytes = 1 << max(0, (_FILTER_BITS * length - 1).bit_length() - 3)
        self._mask = np.uint32(self._bytes - 1)
        self.table = Table({"ring": Column("uint32", (length,)), "next": Column("int64")}, places)
        self.filter = Table({"bits": Column("uint8", (self._bytes,))}, places)

    def add(self, places: PlaceArray, turns: PlaceArray, digests: DigestArray) -> None:
        """Remember rows; of each caller at most `length`, in turn (0, 1, ...)."""
        following = self.table["next"]
        begin = following[places]
        slots = (begin + turns) % self.length
        self.table["ring"][places, slots] = digests
        following[places] = begin + turns + 1  # of several rows of one caller, the last is written last
        self._note(places, slots, digests)

    def knows(self, places: PlaceArray, digests: DigestArray) -> BoolArray:
        """Whether each row is among its caller's, shape (rows,)."""
        found: BoolArray = np.zeros(len(places), np.bool_)
        where, bit = self._where(places, digests)
        maybe = self.filter["bits"].reshape(-1).take(where) & bit
        if not np.count_nonzero(maybe):
            return found
        rows = maybe.nonzero()[0]
        filled = min(int(self.table["next"][places[rows]].max()), self.length)
        equal = self.table["ring"][places[rows], :filled] == digests[rows, np.newaxis]
        if np.count_nonzero(equal):
            found[rows] = equal.any(axis=1)
        return found

    def look(self) -> None:
        """Make all filters anew, after `table` was written to from outside."""
        for place in self.table["next"].nonzero()[0].tolist():
            self._refill(place)

    def _where(self, places: PlaceArray, digests: DigestArray) -> tuple[PlaceArray, npt.NDArray[np.uint8]]:
        """The byte and the bit of each digest, among the filters of all callers."""
        where: PlaceArray = places * self._bytes + ((digests >> _BYTE) & self._mask)
        return where, _BITS.take(digests & _IN_BYTE)

    def _note(self, places: PlaceArray, slots: PlaceArray, digests: DigestArray) -> None:
        where, bit = self._where(places, digests)
        np.bitwise_or.at(self.filter["bits"].reshape(-1), where, bit)
        self._follow(places, slots)

    def _follow(self, places: PlaceArray, slots: PlaceArray) -> None:
        """Some rows were written to these slots: a caller whose ring has gone around gets another filter."""
        if int(slots.max()) == self.length - 1:
            for place in places[slots == self.length - 1].tolist():
                self._refill(place)

    def _refill(self, place: int) -> None:
        ring = self.table["ring"][place]
        ring = ring[ring != 0]
        self.filter["bits"][place] = 0
        where, bit = self._where(np.full(len(ring), place), ring)
        np.bitwise_or.at(self.filter["bits"].reshape(-1), where, bit)
