"""Out-of-distribution score by Mahalanobis distance in feature space (Lee, Lee, Lee and Shin, NeurIPS 2018), last layer alone.

The distance is computed by the model's own graph (`garrison.hardening.feature_scores`): class means and the whitening matrix are parameters
like the others, signed and checked with them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from garrison.errors import GuardError
from garrison.guard.base import Marks, RowDefense, Settings, View
from garrison.types import FEATURE_SCORES, ModelFacts, Phase


class FeatureScore(RowDefense, frozen=True):
    """Give the signal `confidence`: what the graph's output of this defense's name says. Unbounded, higher for inputs like the training data."""

    phase: ClassVar[Phase] = Phase.ANSWER
    gives: ClassVar[frozenset[str]] = frozenset({"confidence"})

    def check(self, facts: ModelFacts) -> None:
        if self.name not in FEATURE_SCORES or facts.feature_score != self.name:
            offered = facts.feature_score or "none"
            raise GuardError(
                f"{self.name} needs a model whose graph computes it, this one offers {offered}: "
                f"run `garrison harden --score {self.name}`, or use max-probability"
            )

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        if view.raw is None or view.raw.feature_score is None:
            raise GuardError(f"{self.name} needs the model's output {self.name!r}")
        return Marks(signals={"confidence": xp.squeeze(view.raw.feature_score, axis=1)})


class Mahalanobis(FeatureScore, frozen=True):
    """Give the signal `confidence`: minus the distance to the nearest class mean, in units in which a typical honest row is about 1 away.

    Blind to inputs that are crafted to have the features of honest ones.
    """

    name: ClassVar[str] = "mahalanobis"
