"""Strange rows hidden among honest ones: every third row of a thief's, and cover between them.

`ood-rate` is made to see a thief who asks nothing else, soon. Cover makes such a thief look like an honest caller with bad pictures; but bad pictures come with all degrees
of doubt, and a mixture has rows that are quite sure and rows that are quite strange, with little between. The table of this detector is made against such a mixture. Two
things are looked up: the rank of the model's largest probability among honest rows of the class that it names, so that somebody who asks about one class is not taken for a
thief, and the confidence itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import numpy as np

from garrison.guard.detectors.base import Detector, Seen
from garrison.guard.detectors.hardness import MOST_CLASSES
from garrison.guard.detectors.tables import ClassEdges, Edges, check_edges, check_nats
from garrison.types import Array, FloatArray


class OodCover(Detector, frozen=True, dict=True):
    """Nats by the row's rank within its class and its confidence; remembers nothing.

    Does not see: questions of the model's own kind; much more cover than two rows for each of the thief's.

    Attributes:
        threshold: see `Detector`.
        edges: by class, largest probability from low to high, equally many each; one line for all classes where there are many.
        strange: edges of the bins of the confidence, from low to high.
        nats: one a pair of bins, those of `strange` running fastest.
    """

    name: ClassVar[str] = "ood-cover"

    edges: tuple[tuple[float, ...], ...]
    strange: tuple[float, ...]
    nats: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.edges) <= MOST_CLASSES or len({len(line) for line in self.edges}) != 1:
            raise ValueError(f"ood-cover.edges: expected 1 to {MOST_CLASSES} lines of equally many numbers")
        for line in self.edges:
            check_edges("ood-cover.edges", line)
        check_edges("ood-cover.strange", self.strange)
        check_nats("ood-cover.nats", self.nats, (len(self.edges[0]) + 1) * (len(self.strange) + 1))

    @property
    def most(self) -> float:
        return max(0.0, *self.nats)

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:  # noqa: ARG002
        edges, strange, nats = self._arrays
        found: FloatArray = nats[edges.bins(seen.probability, seen.top), strange.bins(seen.confidence)]
        return found

    @cached_property
    def _arrays(self) -> tuple[ClassEdges, Edges, FloatArray]:
        nats = np.array(self.nats).reshape(len(self.edges[0]) + 1, len(self.strange) + 1)
        return ClassEdges(np.array(self.edges)), Edges(np.array(self.strange)), nats
