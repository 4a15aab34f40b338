"""Out-of-distribution score by free energy (Liu et al., NeurIPS 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

from garrison.errors import GuardError
from garrison.guard.base import Marks, RowDefense, Settings, View
from garrison.types import ModelFacts, Phase


def confidence(xp: Any, logits: Any, temperature: float) -> Any:
    """Negative free energy T log sum_k exp(z_k / T), shape (rows,): high for inputs like the training data (eq. 4)."""
    z = logits / temperature
    top = xp.max(z, axis=1, keepdims=True)
    return temperature * (xp.log(xp.sum(xp.exp(z - top), axis=1)) + xp.squeeze(top, axis=1))


class Energy(RowDefense, frozen=True):
    """Give the signal `confidence`: the negative free energy of the logits, unbounded.

    Needs a graph that offers logits (`--output logits` at sealing).

    Attributes:
        temperature: above 0; 1 in the paper.
    """

    name: ClassVar[str] = "energy"
    phase: ClassVar[Phase] = Phase.ANSWER
    gives: ClassVar[frozenset[str]] = frozenset({"confidence"})

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"energy.temperature must be above 0, found {self.temperature}")

    def check(self, facts: ModelFacts) -> None:
        if not facts.has_logits:
            raise GuardError(
                f"{self.name} needs the model's logits: seal it with --output logits, or use max-probability"
            )

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        if view.raw is None or view.raw.logits is None:
            raise GuardError(f"{self.name} needs the model's logits")
        return Marks(signals={"confidence": confidence(xp, view.raw.logits, self.temperature)})
