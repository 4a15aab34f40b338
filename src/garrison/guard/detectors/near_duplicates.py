"""Rows that were stepped from rows asked before, as by Jacobian-based augmentation and attacks on the boundary.

A caller's rows are remembered, in part, as their projections. An honest row has several remembered rows about as near as the nearest; a stepped one
has its source, and then nothing for a while. Both the distance to the nearest, among so many, and the gap to the second
nearest enter a logistic regression that was made at sealing from honest callers of several kinds and from simulated steps of many lengths.

Which row makes room for a new one follows from the shared number `salt`, which `watch` draws at random.

Does not see: steps as long as the distances between unrelated rows; a source that was asked so long ago that it is forgotten. A row equal to a
remembered one (a repeat) says nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.base import Column, Detector, Seen
from garrison.types import Array, FloatArray, IntArray

SLOTS = 256
"""Rows remembered of a caller. Once there are so many, a new one takes the place of one at random."""
MOST_SLOTS = 416
FEWEST = 50
"""Rows a caller has asked before which nothing is said."""
TERMS = 10
MOST_NATS = 4.0
_BLOCK = 64
_LARGEST = 127
_WIDEST = 1.0
_FEW = 4
_SAME = 0.5
_FAR = np.float32(np.inf)


class NearDuplicates(Detector, frozen=True, dict=True):
    """Nats by the distances to the nearest and the second nearest remembered row of the same caller.

    Attributes:
        threshold: see `Detector`.
        unit: of the whole numbers that projections are remembered as; larger ones than 127 are cut.
        weights: of the log odds of a stepped row, by the terms that `terms` lists.
        stepped: share of a thief's rows that are stepped; the others are taken for honest ones.
        slots: rows remembered of a caller; what a row costs grows with them.
    """

    name: ClassVar[str] = "near-duplicates"

    unit: float
    weights: tuple[float, ...]
    stepped: float = 0.3
    slots: int = SLOTS

    def __post_init__(self) -> None:
        if not 0 < self.unit < math.inf or not 0 < self.stepped <= 1:
            raise ValueError("near-duplicates: unit must be above 0 and finite, stepped above 0 and at most 1")
        if not FEWEST <= self.slots <= MOST_SLOTS:
            raise ValueError(f"near-duplicates.slots must lie in {FEWEST} to {MOST_SLOTS}, found {self.slots}")
        if len(self.weights) != TERMS or not all(map(math.isfinite, self.weights)):
            raise ValueError(f"near-duplicates.weights: expected {TERMS} finite numbers, found {len(self.weights)}")

    def columns(self, width: int) -> Mapping[str, Column]:
        return {
            "rows": Column("int8", (self.slots, width)),
            "square": Column("float32", (self.slots,), math.inf),
        }

    def shares(self, width: int) -> Mapping[str, Column]:  # noqa: ARG002
        return {"salt": Column("uint64", (1,))}

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:
        nearest, second = self.distances(seen, columns, shared)
        there = np.isfinite(second) & (seen.asked >= FEWEST)
        nearest, second = np.where(there, nearest, 1.0), np.where(there, second, 1.0)
        odds = np.exp(np.clip(terms(nearest, second, seen.asked, self.slots) @ self._weights, -MOST_NATS, MOST_NATS))
        found: FloatArray = np.where(there, np.log1p(self.stepped * (odds - 1)), 0.0)
        return found

    def distances(
        self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]
    ) -> tuple[FloatArray, FloatArray]:
        """To the nearest and the second nearest remembered row that is another one, shape (rows,); infinite where there is none. Then remembers
        these rows."""
        found = np.empty((2, len(seen.place)), dtype=np.float32)
        for start in range(0, len(seen.place), _BLOCK):
            part = slice(start, start + _BLOCK)
            found[:, part] = self._block(seen.place[part], seen.asked[part], seen.projection[part], columns, shared)
        return found[0], found[1]

    def _block(
        self,
        place: IntArray,
        asked: IntArray,
        projection: FloatArray,
        columns: Mapping[str, Array],
        shared: Mapping[str, Array],
    ) -> FloatArray:
        rows, square = columns["rows"], columns["square"]
        whole = np.clip(np.rint(projection / np.float32(self.unit)), -_LARGEST, _LARGEST).astype(np.int8)
        slot = drawn(asked, int(shared["salt"][0]), self.slots)
        x = whole.astype(np.float32)
        own = np.einsum("ij,ij->i", x, x)
        apart = _products(rows, place, -2 * x)
        apart += square[place]  # less `own`, which is the same for a whole line
        _among_themselves(apart, place, slot, x, own)
        rows[place, slot], square[place, slot] = whole, own
        line = np.arange(len(place))
        first = np.argmin(apart, axis=1)
        nearest = apart[line, first]
        if (nearest + own < _SAME).any():  # the same rows again; whole numbers are exact here
            apart[apart + own[:, np.newaxis] < _SAME] = _FAR
            first = np.argmin(apart, axis=1)
            nearest = apart[line, first]
        apart[line, first] = _FAR
        second = apart[line, np.argmin(apart, axis=1)]
        found: FloatArray = np.sqrt(np.stack([nearest, second]) + own) * np.float32(self.unit)
        return found

    @cached_property
    def _weights(self) -> FloatArray:
        return np.array(self.weights)


def terms(nearest: FloatArray, second: FloatArray, asked: IntArray, slots: int) -> FloatArray:
    """What the log odds are linear in, shape (rows, TERMS): 1, and the logarithms of the distance to the nearest, of the gap to the second nearest
    (over it) and of how many rows are remembered, with their squares and products.

    Args:
        nearest, second: above 0 and finite.
        asked: see `Seen`.
        slots: rows that are remembered at most.
    """
    near, gap = np.log(nearest), np.minimum(np.log(second / nearest), _WIDEST)
    known = np.log(np.clip(asked, 1, slots))
    return np.stack(
        [np.ones(len(near)), near, gap, known, near**2, gap**2, known**2, near * gap, near * known, gap * known], axis=1
    )


def _products(rows: Array, place: IntArray, x: FloatArray) -> FloatArray:
    """Of each row with all remembered rows of its caller, shape (rows, slots). Sums of whole numbers, exact in whatever order."""
    callers = np.unique(place)
    if len(callers) * _FEW > len(place):
        found: FloatArray = np.matmul(rows[place].astype(np.float32), x[:, :, np.newaxis])[:, :, 0]
        return found
    found = np.empty((len(place), rows.shape[1]), dtype=np.float32)
    for caller in callers.tolist():  # long requests of a few callers
        mine = np.flatnonzero(place == caller)
        found[mine] = x[mine] @ rows[caller].astype(np.float32).T
    return found


def drawn(asked: IntArray, salt: int, slots: int) -> npt.NDArray[np.intp]:
    """The slot of a caller's row of that number, from 0: one after the other until all are taken, then any of them, as good as random (the mixer of
    SplitMix64, Steele et al. 2014) and the same at every try."""
    x = (asked.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where(asked < slots, asked, ((x ^ (x >> np.uint64(31))) % np.uint64(slots)).astype(np.intp))


def _among_themselves(apart: FloatArray, place: IntArray, slot: IntArray, x: FloatArray, own: FloatArray) -> None:
    """Set squared distances, less `own` of the later row, to earlier rows of the same caller in this block, in the slots that those rows take: of two in
    the same slot the later stands."""
    if len(np.unique(place)) == len(place):
        return
    later, earlier = np.nonzero(np.tril(place[:, np.newaxis] == place, -1))
    apart[later, slot[earlier]] = own[earlier] - 2 * (x @ x.T)[later, earlier]
