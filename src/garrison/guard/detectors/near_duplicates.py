"""Rows that were stepped from rows asked before, as by Jacobian-based augmentation and attacks on the boundary.

A caller's rows are remembered, in part, as their projections. The distance of a new row to the nearest of them and the gap to the second nearest say how
likely it is a step (`steps`); the regression was made at sealing from honest callers of several kinds and from simulated steps of many lengths.

A row that projects as a remembered one does is either a repeat, or a step so small that the rounding hides it. `watch` does not show repeats where it knows
them, and then such a row says `equal`; where it does not know them, nothing.

The projection is by a matrix that `watch` draws and keeps to itself: else a thief could step where it does not look, or far where it looks. Which row makes room
for a new one follows from the shared number `salt`, which is drawn at random too.

Does not see: steps as long as the distances between unrelated rows; a source that was asked so long ago that it is forgotten.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import ClassVar, NamedTuple, Self

import msgspec
import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.base import Column, Detector, Seen
from garrison.guard.detectors.steps import MOST_NATS, Odds, check_steps
from garrison.guard.detectors.turns import pairs_of_one
from garrison.types import Array, BoolArray, FloatArray, IntArray

SLOTS = 192
"""Rows remembered of a caller. Once there are so many, a new one takes the place of one at random."""
MOST_SLOTS = 416
FEWEST = 50
"""Rows a caller has asked before which nothing is said."""
_BLOCK = 160
_LARGEST = 127
_AT_ONCE = 4
"""Callers whose rows are copied at once: these copies should stay near the processor."""
_SAME = 0.5
_FAR = np.float32(np.inf)
_PERIOD = 4096
"""After so many rows the slots come in the same order again."""


class Apart(NamedTuple):
    """What is near each row, among remembered rows of the same caller.

    Attributes:
        squares: squared distances, in units, to the nearest and the second nearest that are not equal; shape (2, rows), infinite where there is none.
        equal: shape (rows,), whether one is equal; None for nowhere.
    """

    squares: FloatArray
    equal: BoolArray | None


class NearDuplicates(Detector, frozen=True, dict=True):
    """Nats by the distances to the nearest and the second nearest remembered row of the same caller.

    Attributes:
        threshold: see `Detector`.
        unit: of the whole numbers that projections are remembered as; larger ones than 127 are cut.
        weights: of the log odds of a stepped row, by the terms of `steps.terms`.
        stepped: share of a thief's rows that are stepped; the others are taken for honest ones.
        slots: rows remembered of a caller; what a row costs grows with them.
        equal: nats of a row that projects as a remembered one does, where it is known to be another; 0 to 4.
    """

    name: ClassVar[str] = "near-duplicates"
    secret_projection: ClassVar[bool] = True

    unit: float
    weights: tuple[float, ...]
    stepped: float = 0.3
    slots: int = SLOTS
    equal: float = 0.0

    def __post_init__(self) -> None:
        check_steps(self.name, self.unit, self.weights, self.stepped)
        if not FEWEST <= self.slots <= MOST_SLOTS:
            raise ValueError(f"near-duplicates.slots must lie in {FEWEST} to {MOST_SLOTS}, found {self.slots}")
        if not 0 <= self.equal <= MOST_NATS:
            raise ValueError(f"near-duplicates.equal must lie in 0 to {MOST_NATS}, found {self.equal}")

    @property
    def most(self) -> float:
        return max(self.equal, self._odds.most)

    def columns(self, width: int) -> Mapping[str, Column]:
        return {
            "rows": Column("int8", (self.slots, width)),
            "square": Column("float32", (self.slots,), np.inf),
        }

    def shares(self, width: int) -> Mapping[str, Column]:  # noqa: ARG002
        return {"salt": Column("uint64", (1,))}

    def among_repeats(self) -> Self:
        return msgspec.structs.replace(self, equal=0.0)

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:
        squares, equal = self.apart(seen, columns, shared)
        odds, asked, fewest = self._odds, seen.asked, int(seen.asked.min())
        if fewest >= FEWEST and squares[1].max() < _FAR:
            known = self.slots if fewest >= self.slots else np.minimum(asked, self.slots)
            found = odds.nats(odds(squares, known))
        else:
            there = (squares[1] < _FAR) & (asked >= FEWEST)
            squares[:, ~there] = 1.0
            found = np.where(there, odds.nats(odds(squares, np.minimum(asked, self.slots))), 0.0)
        if equal is not None and self.equal:
            found[equal & (asked >= FEWEST)] = self.equal
        return found

    def apart(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> Apart:
        """Look at rows, then remember them."""
        rows = len(seen.place)
        if rows <= _BLOCK:
            return self._block(seen.place, seen.asked, seen.projection, columns, shared)
        squares, equal = np.empty((2, rows), dtype=np.float32), np.zeros(rows, dtype=np.bool_)
        for start in range(0, rows, _BLOCK):
            part = slice(start, start + _BLOCK)
            found = self._block(seen.place[part], seen.asked[part], seen.projection[part], columns, shared)
            squares[:, part] = found.squares
            if found.equal is not None:
                equal[part] = found.equal
        return Apart(squares, equal if equal.any() else None)

    def _block(
        self,
        place: IntArray,
        asked: IntArray,
        projection: FloatArray,
        columns: Mapping[str, Array],
        shared: Mapping[str, Array],
    ) -> Apart:
        rows, square = columns["rows"], columns["square"]
        callers = Counter(place.tolist())
        x = np.rint(projection * np.float32(1 / self.unit))
        np.minimum(np.maximum(x, -_LARGEST, out=x), _LARGEST, out=x)
        own = np.vecdot(x, x)
        slot = _slots(asked, int(shared["salt"][0]), self.slots)
        apart = _products(rows, place, x * np.float32(-2), callers)
        apart += square.take(place, axis=0)  # less `own`, which is the same for a whole line
        if len(callers) < len(place):
            _among_themselves(apart, place, slot, x, own)
        rows[place, slot], square[place, slot] = x, own
        line, flat, equal = np.arange(0, apart.size, self.slots), apart.reshape(-1), None
        found = np.empty((2, len(place)), dtype=np.float32)
        first = apart.argmin(axis=1) + line
        nearest = np.add(flat.take(first), own, out=found[0])
        if nearest.min() < _SAME:  # whole numbers are exact here
            same = apart + own[:, np.newaxis] < _SAME
            equal = same.any(axis=1)
            apart[same] = _FAR
            first = apart.argmin(axis=1) + line
            np.add(flat.take(first), own, out=nearest)
        flat[first] = _FAR
        np.add(flat.take(apart.argmin(axis=1) + line), own, out=found[1])
        return Apart(found, equal)

    @cached_property
    def _odds(self) -> Odds:
        return Odds(self.weights, self.stepped, self.unit, self.slots)


def _products(rows: Array, place: IntArray, x: FloatArray, callers: Mapping[int, int]) -> FloatArray:
    """Of each row with all remembered rows of its caller, shape (rows, slots). Sums of whole numbers, exact in whatever order.

    Args:
        callers: how many of these rows each has.
    """
    found = np.empty((len(place), rows.shape[1]), dtype=np.float32)
    many = _scratch(rows.shape[1:])
    if len(callers) == len(place):
        for start in range(0, len(place), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            mine = rows.take(place[part], axis=0)
            some = many[: len(mine)]
            np.copyto(some, mine)
            np.matmul(some, x[part, :, np.newaxis], out=found[part, :, np.newaxis])
        return found
    order = np.argsort(place, kind="stable")
    sorted_x, sorted_found, room = x[order], np.empty_like(found), many[0]
    turned, start = room.T, 0
    for caller in sorted(callers):
        part = slice(start, start + callers[caller])
        np.copyto(room, rows[caller])
        np.matmul(sorted_x[part], turned, out=sorted_found[part])
        start = part.stop
    found[order] = sorted_found
    return found


_held = threading.local()


def _scratch(shape: tuple[int, ...]) -> FloatArray:
    """Room for the rows of `_AT_ONCE` callers, the same each time: to ask the system for it takes longer than to fill it."""
    found: FloatArray | None = getattr(_held, "rows", None)
    if found is None or found.shape[1:] != shape:
        found = _held.rows = np.empty((_AT_ONCE, *shape), dtype=np.float32)
    return found


def drawn(asked: IntArray, salt: int, slots: int) -> npt.NDArray[np.intp]:
    """The slot of a caller's row of that number, from 0: one after the other until all are taken, then any of them, as good as random (the mixer of
    SplitMix64, Steele et al. 2014) and the same at every try."""
    x = (asked.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where(asked < slots, asked, ((x ^ (x >> np.uint64(31))) % np.uint64(slots)).astype(np.intp))


def _slots(asked: IntArray, salt: int, slots: int) -> npt.NDArray[np.intp]:
    """`drawn`, but that it begins again after a while."""
    table = _table(salt, slots)
    return table[asked if int(asked.max()) < _PERIOD else np.where(asked < _PERIOD, asked, asked % _PERIOD + _PERIOD)]


@lru_cache(maxsize=64)
def _table(salt: int, slots: int) -> npt.NDArray[np.intp]:
    return drawn(np.arange(2 * _PERIOD), salt, slots)


def _among_themselves(apart: FloatArray, place: IntArray, slot: IntArray, x: FloatArray, own: FloatArray) -> None:
    """Set squared distances, less `own` of the later row, to earlier rows of the same caller in this block, in the slots that those rows take: of two in
    the same slot the later stands."""
    later, earlier = pairs_of_one(place)
    apart[later, slot[earlier]] = own[earlier] - 2 * (x @ x.T)[later, earlier]
