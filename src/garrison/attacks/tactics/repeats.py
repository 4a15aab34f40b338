"""Repeats: ask every row several times and average, so that noise drawn anew for each answer falls away.

Against a defense that answers the same input the same way, exact repetition gains nothing; `jitter` then asks near copies instead,
whose answers are bent differently while the model's own answer hardly moves.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from garrison.attacks.base import Tactic
from garrison.attacks.draws import jittered
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, MeteredOracle, OracleFacts
from garrison.attacks.tactics.common import nearest
from garrison.types import Array, BoolArray, FloatArray


class Repeats(Tactic, frozen=True):
    """Ask each row several times and average the answers.

    Attributes:
        times: how often; each costs a query.
        jitter: deviation of the near copies, as a share of each feature's range; 0 repeats exactly. Where no range is
            stated, rows are repeated exactly.
    """

    name: ClassVar[str] = "repeats"

    times: int = 3
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.times < 2:
            raise ValueError("times must be at least 2")
        if not 0 <= self.jitter <= 1:
            raise ValueError("jitter must lie in 0 to 1")

    def around(
        self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator
    ) -> tuple[MeteredOracle, Knowledge]:
        return nearest(_Averaged(oracle, self.times, self.jitter, rng), oracle, self.times), knowledge


class _Averaged:
    """Answers with the mean over several askings; the first class is that of the mean, or the most frequent one."""

    def __init__(self, oracle: MeteredOracle, times: int, jitter: float, rng: np.random.Generator) -> None:
        self.facts = oracle.facts
        self._oracle, self._times, self._jitter, self._rng = oracle, times, jitter, rng

    def query(self, x: Array) -> Answers:
        copies = [x] + [jittered(self._rng, x, self.facts, self._jitter) for _ in range(self._times - 1)]
        return averaged([self._oracle.query_within(copy) for copy in copies], self.facts)


def averaged(parts: list[Answers], facts: OracleFacts) -> Answers:
    """The mean of several answers to the same rows; a row counts as refused where all of them were."""
    usable = np.stack([part.usable for part in parts])
    count = usable.sum(axis=0)

    def mean(vectors: list[FloatArray | None]) -> FloatArray | None:
        if any(vector is None for vector in vectors):
            return None
        stacked = np.stack([np.nan_to_num(vector) for vector in vectors if vector is not None])
        total: FloatArray = (stacked * usable[:, :, np.newaxis]).sum(axis=0)
        return np.where(count[:, np.newaxis] > 0, total / np.maximum(count, 1)[:, np.newaxis], np.nan)

    p = mean([part.probabilities for part in parts])
    votes = np.zeros((len(count), facts.classes))
    for part in parts:
        rows = np.flatnonzero(part.usable)
        votes[rows, part.labels[rows]] += 1.0
    first = votes.argmax(axis=1) if p is None else np.nan_to_num(p).argmax(axis=1)
    refused: BoolArray = np.asarray(np.stack([part.refused for part in parts]).all(axis=0))
    return Answers(
        np.where(count > 0, first, -1), p, refused, ~refused & (count == 0), mean([part.values for part in parts])
    )
