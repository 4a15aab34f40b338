"""Sybil accounts: the questions are spread over many accounts, so that a limit or a detector per account sees a share each.

Over HTTP each account is an API key, and the audit must be given that many. In this process an account is a caller's name.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from garrison.attacks.base import Tactic
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, MeteredOracle, OracleFacts
from garrison.attacks.tactics.common import interleaved, nearest
from garrison.types import Array


class Sybil(Tactic, frozen=True):
    """Ask from many accounts, row by row in turn.

    Attributes:
        accounts: how many.
    """

    name: ClassVar[str] = "sybil"
    hides: ClassVar[bool] = True

    accounts: int = 20

    def __post_init__(self) -> None:
        if self.accounts < 2:
            raise ValueError("accounts must be at least 2")

    def obstacle(self, facts: OracleFacts, knowledge: Knowledge) -> str:  # noqa: ARG002
        if facts.accounts >= self.accounts:
            return ""
        return f"it asks from {self.accounts} accounts and the audit was given {facts.accounts}"

    def around(
        self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator
    ) -> tuple[MeteredOracle, Knowledge]:
        del rng
        return nearest(_Spread(oracle, self.accounts), oracle), knowledge


class _Spread:
    """Gives row i of all rows to account i modulo their number."""

    def __init__(self, oracle: MeteredOracle, accounts: int) -> None:
        self.facts = oracle.facts
        self._oracle, self._accounts, self._next = oracle, accounts, 0

    def query(self, x: Array) -> Answers:
        turn = (self._next + np.arange(len(x))) % self._accounts
        self._next += len(x)
        groups = [np.flatnonzero(turn == account) for account in range(self._accounts)]
        parts = [self._oracle.query_within(x[group], account=i) for i, group in enumerate(groups) if len(group)]
        return interleaved(parts, np.concatenate([group for group in groups if len(group)]))
