"""Keyed dynamic watermark (DAWN: Szyller, Atli, Marchal and Asokan, ACM Multimedia 2021).

A share of all inputs, chosen by the owner's key, is answered with a wrong class. A clone that is trained on such answers takes some of
them over, which no model does that was trained without them. `garrison watermark verify` counts that.

The first class of a marked answer and a keyed other one change places, so that the numbers of a marked answer are those of an honest one.
DAWN chooses by a hash of the input, with a mask so that near-duplicates agree; here the hash is of a coarse keyed projection
(`garrison.guard.marking`). Every caller gets the same marks: nothing is remembered of who asked what.
"""

from __future__ import annotations

from typing import ClassVar

from garrison.errors import GuardError
from garrison.guard.marking import Marker
from garrison.guard.relabelling import RelabelDefense
from garrison.types import ModelFacts, Task

MOST_SHARE = 0.2


class Watermark(RelabelDefense, frozen=True):
    """Answer a keyed share of all inputs with a wrong class, as evidence against clones.

    Does not stop: theft. It makes a clone tell whose answers it was trained on.

    Attributes:
        share: of all inputs that are marked: so much accuracy is lost; above 0, at most 0.2.
        cell: how far inputs lie apart that are marked alike, see `garrison.guard.marking.Marker`; None for one by the number of features.
    """

    name: ClassVar[str] = "watermark"

    share: float = 0.01
    cell: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= MOST_SHARE:
            raise ValueError(f"watermark.share must be above 0 and at most {MOST_SHARE}, found {self.share}")
        if self.cell is not None and not 0 < self.cell <= 1:
            raise ValueError(f"watermark.cell must be above 0 and at most 1, found {self.cell}")

    def check(self, facts: ModelFacts) -> None:
        if facts.task is not Task.CLASSIFICATION or facts.outputs < 2:
            raise GuardError(
                f"{self.name} needs a model that answers probabilities of classes; this one answers {facts.task.value}"
            )

    def marks(self, facts: ModelFacts, key: bytes) -> Marker:
        return Marker(key, facts, self.share, self.cell)
