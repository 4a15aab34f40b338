"""How much of the space of inputs a caller has looked at: who copies a model has to look everywhere.

After B4B (Dubinski, Pawlak, Boenisch, Trzcinski and Dziedzic, NeurIPS 2023), which counts the cells of a locality-sensitive hash (Charikar, STOC 2002)
that a caller's inputs have filled. Here each row says something of its own: whether it fell into a cell where this caller has not been for `window` rows,
compared with how often that happens to the honest caller who gets about most. So a caller's millionth row costs what its first did, and the memory of
cells that were visited long ago fades.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.base import Column, Detector, Seen
from garrison.guard.detectors.tables import check_edges, check_nats
from garrison.types import Array, FloatArray

MOST_BITS = 12
_TICK = 16
"""Rows between two marks of the clock by which visits are noted."""
_AROUND = 65_535


class Coverage(Detector, frozen=True, dict=True):
    """Nats by whether the row lies in a cell that is new for this caller, and by how many rows it has asked.

    Does not see: a thief who asks no more widely than honest callers do; where those ask about everything, as test sets do, that is every thief. The
    planes are public, as the matrix of `projection` is.

    Attributes:
        threshold: see `Detector`.
        planes: one line a bit: weights of the projection's numbers.
        offsets: one a bit, taken off before the sign is looked at.
        window: rows after which a visit is forgotten, at most 100,000.
        asked: rows asked from which the next line of nats holds.
        new: nats of a row in a new cell, one more than `asked`.
        known: nats of a row in a known one.
    """

    name: ClassVar[str] = "coverage"

    planes: tuple[tuple[float, ...], ...]
    offsets: tuple[float, ...]
    window: int
    asked: tuple[float, ...]
    new: tuple[float, ...]
    known: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.planes) <= MOST_BITS or len(self.offsets) != len(self.planes):
            raise ValueError(f"coverage.planes: expected 1 to {MOST_BITS} lines, and an offset for each")
        if not _TICK <= self.window <= 100_000:
            raise ValueError(f"coverage.window must lie in {_TICK} to 100000, found {self.window}")
        check_edges("coverage.asked", self.asked)
        for name, nats in (("new", self.new), ("known", self.known)):
            check_nats(f"coverage.{name}", nats, len(self.asked) + 1)

    def columns(self, width: int) -> Mapping[str, Column]:
        if any(len(line) != width for line in self.planes):
            raise ValueError(f"coverage.planes: expected {width} numbers a line, as the projection has")
        return {"visited": Column("uint16", (2 ** len(self.planes),))}

    @property
    def most(self) -> float:
        return max(0.0, *self.new, *self.known)

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:  # noqa: ARG002
        planes, offsets, powers, asked, nats = self._arrays
        cell = ((seen.projection @ planes) > offsets) @ powers
        visited = columns["visited"]
        now = seen.asked // _TICK % _AROUND + 1
        there = visited[seen.place, cell].astype(np.int64)
        fresh = (there == 0) | ((now - there) % _AROUND > self.window // _TICK)
        if np.count_nonzero(fresh) > 1:
            fresh &= _first_of(seen.place * visited.shape[1] + cell)
        visited[seen.place, cell] = now
        found: FloatArray = nats[fresh.astype(np.intp), np.searchsorted(asked, seen.asked, side="right")]
        return found

    @cached_property
    def _arrays(self) -> tuple[FloatArray, FloatArray, npt.NDArray[np.intp], FloatArray, FloatArray]:
        powers = 1 << np.arange(len(self.planes), dtype=np.intp)
        planes = np.ascontiguousarray(np.array(self.planes, dtype=np.float32).T)
        nats = np.array([self.known, self.new])
        return planes, np.array(self.offsets, dtype=np.float32), powers, np.array(self.asked), nats


def _first_of(keys: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Whether no earlier entry is equal, shape (rows,)."""
    first = np.zeros(len(keys), dtype=np.bool_)
    first[np.unique(keys, return_index=True)[1]] = True
    return first
