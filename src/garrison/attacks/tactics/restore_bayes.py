"""Partial Bayes restorer: for every answer, the mean of the clean vectors that would have been answered so.

Tang et al., "ModelGuard: Information-Theoretic Defense Against Model Extraction Attacks" (USENIX Security 2024), the partial Bayes
attack: the thief knows the mechanism and not its key. It draws clean vectors, bends them as the mechanism would, and takes for
an answer the mean of the clean vectors whose bent forms are nearest to it: an estimate of the posterior mean.

Not covered: a prior from a shadow model of the thief's own; the prior here is a Dirichlet from flat to nearly sure. Where the answer
holds no information about f(x), as with misinformation by a keyed draw, nothing can be restored.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from garrison.attacks.base import Tactic
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts
from garrison.attacks.tactics.common import Restored, nearest, needs_probabilities
from garrison.attacks.tactics.mechanisms import Mechanism, bent, imagined_answers
from garrison.types import FloatArray

_SLICE = 256


class RestoreBayes(Tactic, frozen=True):
    """Replace each answer by its posterior mean under an imagined defense.

    Attributes:
        mechanism: the defense that the thief takes the service to have.
        draws: clean vectors that are bent.
        nearest: of them, how many are averaged.
    """

    name: ClassVar[str] = "restore-bayes"

    mechanism: Mechanism = "misinformation"
    draws: int = 20_000
    nearest: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.nearest <= self.draws:
            raise ValueError("nearest must be at least 1 and at most draws")

    def obstacle(self, facts: OracleFacts, knowledge: Knowledge) -> str:  # noqa: ARG002
        return needs_probabilities(facts)

    def around(
        self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator
    ) -> tuple[MeteredOracle, Knowledge]:
        clean = imagined_answers(rng, self.draws, oracle.facts.classes)
        seen = bent(clean, self.mechanism, rng)

        def restore(p: FloatArray) -> FloatArray:
            return np.concatenate([posterior_mean(part, clean, seen, self.nearest) for part in _slices(p)])

        return nearest(Restored(oracle, restore), oracle), knowledge


def posterior_mean(p: FloatArray, clean: FloatArray, seen: FloatArray, count: int) -> FloatArray:
    """For each row of p the mean of the clean vectors whose seen form is among the nearest by L2; shape of p."""
    distance = (seen * seen).sum(axis=1) - 2 * p @ seen.T
    near = np.argpartition(distance, count - 1, axis=1)[:, :count]
    found: FloatArray = clean[near].mean(axis=1)
    return found


def _slices(p: FloatArray) -> list[FloatArray]:
    return [p[first : first + _SLICE] for first in range(0, len(p), _SLICE)] or [p]
