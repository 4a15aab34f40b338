"""Services with several accounts, and a thief who knows all that a tactic may ask for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from tests.attacks.services import Linear, rows

from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, OracleFacts
from garrison.types import Array


@dataclass(slots=True)
class Accounts(Linear):
    """The linear service, asked from three accounts; counts the rows of each."""

    by_account: dict[int, int] = field(default_factory=dict)

    @property
    def facts(self) -> OracleFacts:
        return dataclasses.replace(Linear(soft=self.soft).facts, accounts=3)

    def query_as(self, x: Array, account: int) -> Answers:
        self.by_account[account] = self.by_account.get(account, 0) + len(x)
        return Linear.query(self, x)


def knows() -> Knowledge:
    return Knowledge(rows(200), in_distribution=rows(100, seed=11))
