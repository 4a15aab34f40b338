"""Feature squeezing: a picture whose answer changes when it is squeezed was made to be answered so (Xu, Evans and Qi, NDSS 2018; OWASP ML01)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np

from garrison.errors import GuardError
from garrison.guard.base import Defense, Marks, RowDefense, Rows, Settings, View, raise_not_tighter
from garrison.guard.squeezing import MOST_BITS, WINDOWS, copies_of, disagreement
from garrison.types import ModelFacts, Phase, Task

Action = Literal["distrust", "uncertain", "refuse"]
STRICTNESS: dict[Action, int] = {"distrust": 0, "uncertain": 1, "refuse": 2}
_AXES = 3


class FeatureSqueezing(RowDefense, frozen=True):
    """Compare the answer to a picture with those to its squeezed copies, which the model's graph computes in the same run.

    A picture whose answers lie further apart than `threshold` loses its `confidence`, whatever the action: so it speaks against its caller in `watch`, and
    is misinformed or rejected like what looks out of distribution.

    Does not see: changes that survive the squeezing, as of an attacker who optimises through it, and large ones.

    Attributes:
        threshold: on the L1 distance, in (0, 2]; 0 has it calibrated at sealing, on honest rows.
        bits: of a pixel in the first copy; 0 for no such copy.
        window: side of the median's window in the second copy, 2 or 3; 0 for no such copy.
        false_alarms: share of honest rows that may lie above the threshold; what it was calibrated to.
        action: "distrust" takes the confidence alone; "uncertain" also answers with equal probabilities and marks the row; "refuse" refuses.
    """

    name: ClassVar[str] = "feature-squeezing"
    phase: ClassVar[Phase] = Phase.ANSWER
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})
    gives: ClassVar[frozenset[str]] = frozenset({"confidence", "disagreement"})
    adjustable: ClassVar[frozenset[str]] = frozenset({"threshold"})
    reason: ClassVar[str] = "guard.squeezed"

    threshold: float = 0.0
    bits: int = 2
    window: int = 0
    false_alarms: float = 0.02
    action: Action = "distrust"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 2:
            raise ValueError(f"feature-squeezing.threshold must lie in 0 to 2, found {self.threshold}")
        if not 0 < self.false_alarms < 1:
            raise ValueError(f"feature-squeezing.false_alarms must lie between 0 and 1, found {self.false_alarms}")
        if not 0 <= self.bits <= MOST_BITS or self.window not in (0, *WINDOWS) or not self.copies:
            raise ValueError(
                f"feature-squeezing: bits must lie in 0 to {MOST_BITS}, window be 0, 2 or 3, and one of them above 0; found "
                f"{self.bits} and {self.window}"
            )

    @property
    def copies(self) -> int:
        """Squeezed copies of a row."""
        return copies_of(self.bits, self.window)

    def check(self, facts: ModelFacts) -> None:
        self.check_inputs(facts)
        if not facts.has_squeezed:
            raise GuardError(
                f"{self.name} needs a model whose graph answers squeezed copies too, and this one's does not: choose it at sealing "
                f"(garrison seal --defense {self.name} --data FILE.npz)"
            )
        if not self.threshold:
            raise GuardError(f"{self.name} was not calibrated: give honest rows at sealing, or a threshold")

    def check_inputs(self, facts: ModelFacts) -> None:
        """Raise `GuardError` where squeezing makes no sense for such a model."""
        if facts.task is not Task.CLASSIFICATION:
            raise GuardError(f"{self.name} compares probabilities; this model answers {facts.task.value}")
        spec = facts.inputs[0]
        pictures = len(facts.inputs) == 1 and len(spec.shape) == _AXES and min(spec.shape[1:]) >= max(2, self.window)
        if not pictures or spec.dtype.kind != "f":
            shapes = ", ".join(f"{one.dtype} {list(one.shape)}" for one in facts.inputs)
            raise GuardError(
                f"{self.name} squeezes pictures: expected one input of real numbers (channels, height, width), found {shapes}"
            )
        if not np.isfinite(spec.low).all() or not np.isfinite(spec.high).all() or spec.high.max() <= spec.low.min():
            raise GuardError(f"{self.name} needs the range of the pixels, and the model's inputs state none")

    def check_chain(self, chain: Sequence[Defense]) -> None:
        drawing = next((d.name for d in chain if isinstance(d, RowDefense) and d.draws), "")
        if self.action == "uncertain" and drawing:
            raise GuardError(
                f"{self.name} with the action 'uncertain' would be told apart beside {drawing}, which answers as if nothing were: "
                "use 'distrust'"
            )

    def settings(self, facts: ModelFacts) -> Settings:
        return {"threshold": np.asarray(self.threshold, facts.value_dtype)}

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:
        if view.raw is None or view.raw.squeezed is None:
            raise GuardError(f"{self.name} needs the model's answers to squeezed copies")
        apart = disagreement(xp, view.raw.values, view.raw.squeezed, self.copies)
        strange = ~(apart <= settings["threshold"])  # NaN fails closed
        confidence = view.signals["confidence"]
        lost = xp.where(strange, xp.asarray(np.array(math.nan, dtype=np.float32)), xp.astype(confidence, xp.float32))
        signals = {"confidence": xp.astype(lost, confidence.dtype), "disagreement": apart}
        if self.action == "refuse":
            return Marks(refuse=strange, signals=signals)
        return Marks(replace=strange, uncertain=strange if self.action == "uncertain" else None, signals=signals)

    def rewrite(self, xp: Any, rows: Rows, settings: Settings) -> Any:  # noqa: ARG002
        if self.action == "distrust":
            return rows.answer  # what later defenses make of it is their work
        return xp.full_like(rows.answer, 1.0 / rows.answer.shape[1])

    def check_tightened(self, signed: Self) -> None:
        if self.threshold > signed.threshold or STRICTNESS[self.action] < STRICTNESS[signed.action]:
            raise_not_tighter(
                self.name, f"threshold must be at most {signed.threshold} and the action as strict as {signed.action!r}"
            )
        if (self.bits, self.window) != (signed.bits, signed.window):
            raise_not_tighter(self.name, "bits and window are part of the model's graph")
