"""How hard a caller's rows are for the model, class by class: who steals asks near the borders between classes.

After HODA (Sadeghzadeh, Sobhanian, Dehghan and Jalili, 2021), which compares a histogram of a caller's samples by hardness with the honest one. Here hardness
is measured in one look: the rank of the model's largest probability among honest rows of the class that it names, so that somebody who only asks about a
hard class is not taken for a thief. Beside it stands how far out the row lies, the Mahalanobis distance of its projection, again as a rank within the class: hard rows of
honest callers are unusual pictures, and those of thieves are often mixtures, hard and not unusual at all. Both ranks fall into a table of nats made at sealing,
as for `ood-rate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import numpy as np

from garrison.guard.detectors.base import Detector, Seen
from garrison.guard.detectors.tables import ClassEdges, check_edges, check_nats
from garrison.types import Array, FloatArray

MOST_CLASSES = 64
"""With more classes, all share one line of edges."""


class Hardness(Detector, frozen=True, dict=True):
    """Nats by the row's ranks of probability and of distance within the class that the model names; remembers nothing.

    Does not see: a thief whose rows are as hard as honest ones, such as random rows of the model's own kind.

    Attributes:
        threshold: see `Detector`.
        edges: by class, largest probability from low to high, equally many each; one line for all classes where there are many.
        mean: of honest projections.
        whiten: by number of the projection, weights that make honest projections uncorrelated and of variance 1.
        far: by class as `edges`, squared distance from `mean` after that, from near to far; may be empty.
        nats: one a pair of bins, those of `far` running fastest.
    """

    name: ClassVar[str] = "hardness"

    edges: tuple[tuple[float, ...], ...]
    mean: tuple[float, ...]
    whiten: tuple[tuple[float, ...], ...]
    far: tuple[tuple[float, ...], ...]
    nats: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.edges) == len(self.far) <= MOST_CLASSES:
            raise ValueError(f"hardness: expected as many lines of far as of edges, 1 to {MOST_CLASSES}")
        for name, lines in (("edges", self.edges), ("far", self.far)):
            if len({len(line) for line in lines}) != 1:
                raise ValueError(f"hardness.{name}: expected equally many numbers for each class")
            for line in lines:
                check_edges(f"hardness.{name}", line)
        check_nats("hardness.nats", self.nats, (len(self.edges[0]) + 1) * (len(self.far[0]) + 1))
        if len(self.whiten) != len(self.mean) or any(len(row) > len(self.mean) for row in self.whiten):
            raise ValueError("hardness.whiten: expected a square matrix, one line for each number of the mean")

    @property
    def most(self) -> float:
        return max(0.0, *self.nats)

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:  # noqa: ARG002
        tables = self._tables
        hard = tables.edges.bins(seen.probability, seen.top)
        out = tables.far.bins(distance(seen.projection, tables.mean, tables.whiten), seen.top)
        found: FloatArray = tables.nats[hard, out]
        return found

    @cached_property
    def _tables(self) -> _Tables:
        return _Tables(self)


class _Tables:
    """The parameters as arrays."""

    def __init__(self, detector: Hardness) -> None:
        self.edges, self.far = ClassEdges(np.array(detector.edges)), ClassEdges(np.array(detector.far))
        self.mean = np.array(detector.mean, dtype=np.float32)
        self.whiten = np.array(detector.whiten, dtype=np.float32)
        self.nats = np.array(detector.nats).reshape(len(detector.edges[0]) + 1, len(detector.far[0]) + 1)


def distance(projection: FloatArray, mean: FloatArray, whiten: FloatArray) -> FloatArray:
    """Squared Mahalanobis distance, shape (rows,)."""
    white = (projection - mean) @ whiten
    found: FloatArray = np.einsum("rk,rk->r", white, white)
    return found
