"""Cover traffic: honest-looking rows between the questions, so that a detector that looks at the whole stream sees mostly those.

The cover's rows are paid for like all others, but they are not the thief's questions: the budget is one of questions, and the
report shows both counts.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from garrison.attacks.base import Tactic
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, MeteredOracle, OracleFacts, filled_up
from garrison.attacks.tactics.common import interleaved, nearest
from garrison.types import Array


class CoverTraffic(Tactic, frozen=True):
    """Send rows of the model's own kind between the questions.

    Attributes:
        ratio: rows of cover for each question.
    """

    name: ClassVar[str] = "cover-traffic"
    hides: ClassVar[bool] = True

    ratio: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 100:
            raise ValueError("ratio must be above 0 and at most 100")

    def obstacle(self, facts: OracleFacts, knowledge: Knowledge) -> str:  # noqa: ARG002
        return "" if knowledge.in_distribution is not None else "the thief has no rows of the model's own kind"

    def beside(self, rows: int) -> int:
        return math.ceil(self.ratio * rows)

    def around(
        self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator
    ) -> tuple[MeteredOracle, Knowledge]:
        own = knowledge.in_distribution
        if own is None:
            return oracle, knowledge
        return nearest(_Covered(oracle, own, self.ratio, rng), oracle), knowledge


class _Covered:
    """Mixes each request with cover, and hands back the answers to the questions alone."""

    def __init__(self, oracle: MeteredOracle, own: Array, ratio: float, rng: np.random.Generator) -> None:
        self.facts = oracle.facts
        self._oracle, self._own, self._ratio, self._rng = oracle, own, ratio, rng

    def query(self, x: Array) -> Answers:
        return filled_up(self._mixed(x[: self._oracle.remaining]), len(x))

    def _mixed(self, x: Array) -> Answers:
        cover = self._own[self._rng.integers(0, len(self._own), math.ceil(self._ratio * len(x)))]
        both = np.concatenate([x, cover.astype(x.dtype, copy=False)])
        order = self._rng.permutation(len(both))
        answers = self._oracle.query(both[order], cover=order >= len(x))
        mine = np.flatnonzero(order < len(x))
        return interleaved([answers[mine]], order[mine])
