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

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import ClassVar, NamedTuple, Self

import msgspec
import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.base import Column, Detector, Seen
from garrison.guard.detectors.recalled import FAR, apart, columns_of
from garrison.guard.detectors.steps import MOST_NATS, Odds, check_steps, nearest
from garrison.types import Array, BoolArray, FloatArray, IntArray

SLOTS = 192
"""Rows remembered of a caller. Once there are so many, a new one takes the place of one at random."""
MOST_SLOTS = 416
FEWEST = 50
"""Rows a caller has asked before which nothing is said."""
_BLOCK = 256
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
        return columns_of(self.slots, width)

    def shares(self, width: int) -> Mapping[str, Column]:  # noqa: ARG002
        return {"salt": Column("uint64", (1,))}

    def among_repeats(self) -> Self:
        return msgspec.structs.replace(self, equal=0.0)

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:
        squares, equal = self.apart(seen, columns, shared)
        odds, asked, fewest = self._odds, seen.asked, int(seen.asked.min())
        if fewest >= FEWEST and squares[1].max() < FAR:
            known = self.slots if fewest >= self.slots else np.minimum(asked, self.slots)
            found = odds.nats(odds(squares, known))
        else:
            there = (squares[1] < FAR) & (asked >= FEWEST)
            squares[:, ~there] = 1.0
            found = np.where(there, odds.nats(odds(squares, np.minimum(asked, self.slots))), 0.0)
        if equal is not None and self.equal:
            found[equal & (asked >= FEWEST)] = self.equal
        return found

    def apart(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> Apart:
        """Look at rows, then remember them."""
        rows, salt = len(seen.place), int(shared["salt"][0])
        squares, equal = np.empty((2, rows), dtype=np.float32), np.zeros(rows, dtype=np.bool_)
        for part, some in seen.parts(_BLOCK):
            found = nearest(*apart(some, self.unit, _slots(some.asked, salt, self.slots), columns))
            by = some.order.sorted
            squares[:, part][:, by] = found.squares
            if found.equal is not None:
                equal[part][by] = found.equal
        return Apart(squares, equal if equal.any() else None)

    @cached_property
    def _odds(self) -> Odds:
        return Odds(self.weights, self.stepped, self.unit, self.slots)


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
