"""A plan's attacks, one budget at a time, for a certain target."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from garrison.attacks.base import NAIVE, Attack, Tactic, Tried, View
from garrison.attacks.oracle import OracleFacts
from garrison.audit.plan import Plan, load_attack, load_tactic, tactic_names


@dataclass(frozen=True, slots=True)
class Step:
    """One attack with one budget.

    Attributes:
        label: the attack's name in the report.
        tactic: the tactics' names, "naive" for none.
        surrogate: rows that it asks, "" for the plan's.
        only: "tables" or "images", where the plan keeps the attack for models of one kind.
    """

    label: str
    attack: Attack
    tactics: tuple[Tactic, ...]
    tactic: str
    view: View
    budget: int
    surrogate: str = ""
    only: str = ""

    def tried(self, target: str) -> Tried:
        """What its findings stand under."""
        return Tried(self.label, target, self.view, self.tactic)

    def __str__(self) -> str:
        around = "" if self.tactic == NAIVE else f" with {self.tactic}"
        return f"{self.label}{around}, {self.budget:,} queries, {self.view.value}"


def steps_of(plan: Plan, facts: OracleFacts) -> Iterator[Step]:
    """Every attack with its budgets, in the plan's order; of each attack the smallest first, so that larger ones share its questions."""
    unknowns = math.prod(facts.shape) + 1
    for item in plan.attacks:
        attack = load_attack(item.name, item.parameters)
        tactics = tuple(load_tactic(table) for table in item.tactics)
        budgets = {*item.budgets, *(math.ceil(share * unknowns) for share in item.a_feature)}
        for budget in sorted(budgets):
            yield Step(
                item.label or item.name,
                attack,
                tactics,
                tactic_names(item.tactics),
                item.answers,
                budget,
                item.surrogate,
                item.only,
            )
