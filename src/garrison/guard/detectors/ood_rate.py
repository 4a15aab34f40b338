"""How often a caller asks about what is not the model's business.

One such row says little: honest pictures are moved, mirrored, badly lit. Many do. Each row's confidence falls into a bin of a table that was
made at sealing: nats by how much likelier the bin is under strange inputs than under the honest caller, of all that were simulated, who looks
most like a thief (the reverse information projection: Li 1999; Gruenwald, de Heide and Koolen 2024). The sum is then Wald's sequential test (1945),
for any mixture of those honest callers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import numpy as np

from garrison.guard.detectors.base import Detector, Seen
from garrison.guard.detectors.tables import Edges, check_edges, check_nats, sure_above
from garrison.types import Array, FloatArray


class OodRate(Detector, frozen=True, dict=True):
    """Nats by the row's confidence alone; remembers nothing.

    Does not see: questions of the model's own kind, however many; a thief who makes strange rows look confident.

    Attributes:
        threshold: see `Detector`.
        edges: of the bins, confidence from low to high.
        nats: one a bin, so one more than edges.
    """

    name: ClassVar[str] = "ood-rate"

    edges: tuple[float, ...]
    nats: tuple[float, ...]

    def __post_init__(self) -> None:
        check_edges("ood-rate.edges", self.edges)
        check_nats("ood-rate.nats", self.nats, len(self.edges) + 1)

    @property
    def most(self) -> float:
        return max(0.0, *self.nats)

    @property
    def sure(self) -> float:
        return sure_above(self.edges, self.nats)

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:  # noqa: ARG002
        edges, nats = self._arrays
        found: FloatArray = nats[edges.bins(seen.confidence)]
        return found

    @cached_property
    def _arrays(self) -> tuple[Edges, FloatArray]:
        return Edges(np.array(self.edges)), np.array(self.nats)
