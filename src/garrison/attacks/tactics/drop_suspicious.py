"""Drop suspicious answers: train on what looks honest alone.

Two signs of misinformation that a thief can see. A near copy of a row, asked as well, is misinformed differently when the misinformation
is drawn for each input, while the model itself would answer alike; that costs a second query a row. And an answer that is less sure
than the model usually is: free, but honest answers near a boundary go too.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from garrison.attacks.base import Tactic
from garrison.attacks.draws import has_range, jittered
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.measures import total_variation
from garrison.attacks.oracle import Answers, MeteredOracle, OracleFacts
from garrison.attacks.tactics.common import nearest
from garrison.types import Array, BoolArray


class DropSuspicious(Tactic, frozen=True):
    """Throw away answers that look misinformed.

    Attributes:
        sign: "neighbour" drops rows whose near copy is answered otherwise, "unsure" those whose first probability is low.
        jitter: deviation of the near copy, as a share of each feature's range.
        most_change: largest total variation between the two answers that is still believed.
        least_confidence: smallest first probability that is still believed, for "unsure".
    """

    name: ClassVar[str] = "drop-suspicious"

    sign: Literal["neighbour", "unsure"] = "neighbour"
    jitter: float = 0.01
    most_change: float = 0.3
    least_confidence: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.jitter <= 1 or not 0 < self.most_change <= 1 or not 0 < self.least_confidence < 1:
            raise ValueError("jitter and most_change must lie in 0 to 1, least_confidence too, none of them 0")

    def obstacle(self, facts: OracleFacts, knowledge: Knowledge) -> str:  # noqa: ARG002
        if self.sign == "unsure" and not facts.soft:
            return "how sure an answer is cannot be seen where labels alone are released"
        if self.sign == "neighbour" and not has_range(facts):
            return "near copies need the range of every feature, and the service does not state all of them"
        return ""

    def around(
        self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator
    ) -> tuple[MeteredOracle, Knowledge]:
        cost = 2 if self.sign == "neighbour" else 1
        return nearest(_Sifted(oracle, self, rng), oracle, cost), knowledge


class _Sifted:
    """Marks dropped rows as uncertain, which no attack trains on."""

    def __init__(self, oracle: MeteredOracle, tactic: DropSuspicious, rng: np.random.Generator) -> None:
        self.facts = oracle.facts
        self._oracle, self._tactic, self._rng = oracle, tactic, rng

    def query(self, x: Array) -> Answers:
        found = self._oracle.query_within(x)
        dropped = found.usable & (self._unlike(x, found) if self._tactic.sign == "neighbour" else self._unsure(found))
        return Answers(found.labels, found.probabilities, found.refused, found.uncertain | dropped, found.values)

    def _unlike(self, x: Array, found: Answers) -> BoolArray:
        near = self._oracle.query_within(jittered(self._rng, x, self.facts, self._tactic.jitter))
        unlike: BoolArray = near.usable & (near.labels != found.labels)
        if found.probabilities is None or near.probabilities is None:
            return unlike
        change = total_variation(np.nan_to_num(found.probabilities), np.nan_to_num(near.probabilities))
        return unlike | (near.usable & (change > self._tactic.most_change))

    def _unsure(self, found: Answers) -> BoolArray:
        if found.probabilities is None:
            return np.zeros(len(found.labels), dtype=np.bool_)
        unsure: BoolArray = np.nan_to_num(found.probabilities).max(axis=1) < self._tactic.least_confidence
        return unsure
