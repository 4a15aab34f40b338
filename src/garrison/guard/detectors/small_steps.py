"""Rows that differ from the ones just before by less than honest rows ever do, as in black-box searches for adversarial examples.

Square, HopSkipJump and their like ask about one picture again and again, a little changed each time. So each row's distance to the nearest of the last few rows of
the same caller falls into a bin of a table that was made at sealing: nats by how much likelier the bin is under a search, whose steps are of any length up to a
share of the honest distance, than under the honest caller, of all that were simulated, who looks most like one. It speaks from the second row on, so that a search of
a few dozen questions is seen too; `near-duplicates`, which knows longer steps and a longer past, begins after 50.

The projection is by a matrix that `watch` keeps to itself. Does not see: a search that is spread over accounts, or hidden among so many other rows that its own last
row is forgotten; longer steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, Self

import msgspec
import numpy as np

from garrison.guard.detectors.base import Column, Detector, Seen
from garrison.guard.detectors.recalled import FAR, apart, columns_of
from garrison.guard.detectors.tables import Edges, check_edges, check_nats
from garrison.types import Array, FloatArray

SLOTS = 16
"""Rows remembered of a caller: the last ones."""
MOST_SLOTS = 128
_BLOCK = 256
_SAME = 0.5


class SmallSteps(Detector, frozen=True, dict=True):
    """Nats by the distance to the nearest of the caller's last rows.

    Attributes:
        threshold: see `Detector`.
        unit: of the whole numbers that projections are remembered as; larger ones than 127 are cut.
        edges: of the bins, distances from small to large.
        nats: one a bin, so one more than edges.
        slots: rows remembered of a caller.
        repeats: whether rows that their caller asked before may be among those shown; then one that projects as another says nothing.
    """

    name: ClassVar[str] = "small-steps"
    secret_projection: ClassVar[bool] = True

    unit: float
    edges: tuple[float, ...]
    nats: tuple[float, ...]
    slots: int = SLOTS
    repeats: bool = False

    def __post_init__(self) -> None:
        check_edges("small-steps.edges", self.edges)
        check_nats("small-steps.nats", self.nats, len(self.edges) + 1)
        if not 0 < self.unit < math.inf or not 1 <= self.slots <= MOST_SLOTS:
            raise ValueError(f"small-steps: unit must be above 0 and finite, slots lie in 1 to {MOST_SLOTS}")

    def columns(self, width: int) -> Mapping[str, Column]:
        return columns_of(self.slots, width)

    @property
    def most(self) -> float:
        return max(0.0, *self.nats)

    def among_repeats(self) -> Self:
        return msgspec.structs.replace(self, repeats=True)

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:  # noqa: ARG002
        nearest = self.nearest(seen, columns)
        edges, nats = self._arrays
        if not self.repeats and nearest.max() < FAR:
            return nats.take(edges.bins(nearest))
        said = nearest < FAR
        if self.repeats:
            said &= nearest >= _SAME * self.unit
        found: FloatArray = np.where(said, nats[edges.bins(nearest)], 0.0)
        return found

    def nearest(self, seen: Seen, columns: Mapping[str, Array]) -> FloatArray:
        """The distance to the nearest of the caller's last rows, shape (rows,), infinite for its first; then remember these rows."""
        found = np.empty(len(seen.place), dtype=np.float32)
        for part, some in seen.parts(_BLOCK):
            squares, own = apart(some, self.unit, some.asked % self.slots, columns)
            found[part][some.order.sorted] = np.sqrt(squares.min(axis=1) + own)
        found *= np.float32(self.unit)
        return found

    @cached_property
    def _arrays(self) -> tuple[Edges, FloatArray]:
        return Edges(np.array(self.edges)), np.array(self.nats)
