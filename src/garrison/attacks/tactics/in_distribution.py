"""In-distribution data: the thief asks inputs of the model's own kind, which no test of the input tells from an honest user's.

Such rows are dear to come by, and the report names how many the thief had. Where the attack asks more rows than there are, it asks
what there is.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from garrison.attacks.base import Tactic
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts


class InDistribution(Tactic, frozen=True):
    """Ask rows of the model's own kind in place of surrogate rows."""

    name: ClassVar[str] = "in-distribution"

    def obstacle(self, facts: OracleFacts, knowledge: Knowledge) -> str:  # noqa: ARG002
        return "" if knowledge.in_distribution is not None else "the thief has no rows of the model's own kind"

    def around(
        self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator
    ) -> tuple[MeteredOracle, Knowledge]:
        del rng
        own = knowledge.in_distribution
        return oracle, knowledge if own is None else dataclasses.replace(knowledge, surrogate=own)
