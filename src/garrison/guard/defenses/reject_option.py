"""Reject option: refuse, or answer "uncertain", where the input looks out of distribution (Chow 1970; ML01)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import numpy as np

from garrison.errors import GuardError
from garrison.guard.base import Marks, RowDefense, Rows, Settings, View, raise_not_tighter
from garrison.types import ModelFacts, Phase, Task


class RejectOption(RowDefense, frozen=True):
    """For owners who may not misinform: below `tau` the row is refused, or answered with equal probabilities and marked.

    Does not hide itself: a caller sees which inputs fall below tau, and can search for the border.

    Attributes:
        tau: threshold on the signal `confidence`, calibrated on held-out benign rows.
        action: "refuse" refuses the whole request, "uncertain" marks the row.
    """

    name: ClassVar[str] = "reject-option"
    phase: ClassVar[Phase] = Phase.ANSWER
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})
    adjustable: ClassVar[frozenset[str]] = frozenset({"tau"})
    reason: ClassVar[str] = "guard.out_of_distribution"

    tau: float
    action: Literal["refuse", "uncertain"] = "uncertain"

    def __post_init__(self) -> None:
        if not math.isfinite(self.tau):
            raise ValueError(f"reject-option.tau must be finite, found {self.tau}")

    def check(self, facts: ModelFacts) -> None:
        if facts.task is not Task.CLASSIFICATION:
            raise GuardError(
                f"{self.name} needs a model that answers probabilities; this one answers {facts.task.value}"
            )

    def settings(self, facts: ModelFacts) -> Settings:
        return {"tau": np.asarray(self.tau, facts.value_dtype)}

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        doubtful = ~(view.signals["confidence"] >= settings["tau"])  # NaN is doubtful
        return Marks(refuse=doubtful) if self.action == "refuse" else Marks(replace=doubtful, uncertain=doubtful)

    def rewrite(self, xp: Any, rows: Rows, settings: Settings) -> Any:  # noqa: ARG002
        return xp.full_like(rows.answer, 1.0 / rows.answer.shape[1])

    def check_tightened(self, signed: Self) -> None:
        if self.tau < signed.tau or (signed.action == "refuse" and self.action != "refuse"):
            raise_not_tighter(
                self.name, f"tau must be at least {signed.tau} and the action as strict as {signed.action!r}"
            )
