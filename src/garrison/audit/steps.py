"""A plan's attacks, one budget at a time, for a certain target and arm."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from garrison.attacks.base import NAIVE, Attack, Tactic, Tried, View
from garrison.attacks.oracle import OracleFacts
from garrison.audit.grid import ArmPlan, ColumnPlan, arm_named, filled
from garrison.audit.plan import AttackPlan, Plan, load_attack, load_tactic, tactic_names


@dataclass(frozen=True, slots=True)
class Step:
    """One attack with one budget.

    Attributes:
        label: the attack's name in the report.
        tactic: the tactics' names, or the column's; "naive" for none.
        surrogate: rows that it asks, "" for the plan's.
        only: "tables" or "images", where the plan keeps the attack for models of one kind.
        seconds: processor seconds of one clone, about; 0 where the plan does not say.
        senseless: why the plan does not have it carried out; "" where it has.
    """

    label: str
    attack: Attack
    tactics: tuple[Tactic, ...]
    tactic: str
    view: View
    budget: int
    surrogate: str = ""
    only: str = ""
    seconds: float = 0.0
    senseless: str = ""

    def tried(self, target: str) -> Tried:
        """What its findings stand under."""
        return Tried(self.label, target, self.view, self.tactic)

    def __str__(self) -> str:
        around = "" if self.tactic == NAIVE else f" with {self.tactic}"
        return f"{self.label}{around}, {self.budget:,} queries, {self.view.value}"


def seeds_of(plan: Plan, arm: str) -> tuple[int, ...]:
    """The seeds with which an arm is attacked."""
    return arm_named(plan.arms, arm).seeds or plan.seeds


def steps_of(plan: Plan, facts: OracleFacts, arm: str = "") -> Iterator[Step]:
    """Every attack with its budgets, in the plan's order; of each attack the smallest first, so that larger ones share its questions.

    Args:
        plan: whose attacks.
        facts: of the target.
        arm: its name; of a plan with columns, the cells that are filled on it.
    """
    mine = arm_named(plan.arms, arm)
    for column in plan.columns or (None,):
        for item in plan.attacks:
            if column is None or filled(mine, item.label or item.name, column.name):
                yield from _steps(item, column, mine, facts)


def _seen(wanted: View, facts: OracleFacts) -> View:
    """What a thief reads off an arm of a table: labels alone where it gives no more."""
    return wanted if facts.soft or facts.scores or facts.regression else View.LABELS


def _steps(item: AttackPlan, column: ColumnPlan | None, arm: ArmPlan, facts: OracleFacts) -> Iterator[Step]:
    label, unknowns = item.label or item.name, math.prod(facts.shape) + 1
    own = {*item.budgets, *(math.ceil(share * unknowns) for share in item.a_feature)}
    tables = item.tactics if column is None else column.tactics_on(arm)
    budgets = own if column is None else {*column.budgets.get(label, own)}
    for budget in sorted(budgets):
        yield Step(
            label,
            load_attack(item.name, item.parameters),
            tuple(load_tactic(table) for table in tables),
            tactic_names(tables) if column is None else column.name,
            item.answers if column is None else _seen(item.answers, facts),
            budget,
            item.surrogate,
            item.only,
            item.seconds * budget / max(own),
            "" if column is None else column.senseless.get(label, ""),
        )
