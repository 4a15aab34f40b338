"""The outer call that keeps an attack honest: it meters, holds the budget, seeds, and grades."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
from tests.attacks.services import CLASSES, FEATURES, Linear, rows

from garrison.attacks.base import Attack, Goal, Tactic, Tried, View, findings_of
from garrison.attacks.exam import Clone, Exam, chance_levels
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, MeteredOracle
from garrison.errors import AuditError, QueryBudgetError
from garrison.types import Array, FloatArray

Run = Callable[[MeteredOracle, Knowledge, np.random.Generator], Clone]


def scripted(run: Run) -> Attack:
    """An attack that does as it is told."""

    class Scripted(Attack, frozen=True):
        name: ClassVar[str] = "scripted"
        goal: ClassVar[Goal] = Goal.EXTRACTION

        def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone:
            return run(oracle, knowledge, rng)

    return Scripted()


def exam(n: int = 40, *, labels: bool = True) -> Exam:
    x = rows(n, seed=9)
    reference = Linear().truth(x)
    return Exam(x, reference.argmax(axis=1) if labels else None, reference)


def constant(k: int) -> Clone:
    def clone(x: Any) -> FloatArray:
        return np.repeat(np.eye(CLASSES, dtype=np.float32)[[k]], len(x), axis=0)

    return clone


def asking(n: int, clone: Clone) -> Run:
    """Ask n surrogate rows, then hand over the clone."""

    def run(oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone:
        oracle.query(knowledge.surrogate[:n])
        return clone

    return run


def carry_out(run: Run, service: Linear | None = None, budget: int = 100, seed: int = 0) -> Any:
    return scripted(run).carry_out(service or Linear(), Knowledge(rows(50)), exam(), budget=budget, seed=seed)


def test_rows_are_counted_repeats_too() -> None:
    def run(oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone:
        for _ in range(3):
            oracle.query(knowledge.surrogate[:10])
        return constant(0)

    trial = carry_out(run)
    assert (trial.queries, trial.unanswered, trial.complete) == (30, 0, True)


def test_a_budget_of_nothing_is_an_error() -> None:
    with pytest.raises(QueryBudgetError, match="at least 1"):
        carry_out(asking(0, constant(0)), budget=0)


def test_an_attack_that_overdraws_is_stopped() -> None:
    with pytest.raises(QueryBudgetError):
        carry_out(asking(50, constant(0)), budget=49)


def test_a_failing_service_is_data_and_makes_the_trial_incomplete() -> None:
    seen = []

    def run(oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone:
        seen.append(oracle.query(knowledge.surrogate))
        return constant(1)

    trial = carry_out(run, Linear(breaks=True))
    assert seen[0].refused.all()
    assert (seen[0].labels == -1).all()
    assert seen[0].probabilities is not None
    assert np.isnan(seen[0].probabilities).all()
    assert (trial.queries, trial.unanswered, trial.failed, trial.complete) == (50, 50, 50, False)


def test_the_base_grades_on_rows_that_the_attack_never_saw() -> None:
    service, held = Linear(), exam()
    truth = scripted(asking(0, service.truth)).carry_out(service, Knowledge(rows(5)), held, budget=1, seed=0)
    assert {name: float(values.mean()) for name, values in truth.scores.items()} == {
        "clone_accuracy": 1.0,
        "fidelity": 1.0,
        "total_variation": 0.0,
    }
    wrong = scripted(asking(0, constant(0))).carry_out(service, Knowledge(rows(5)), held, budget=1, seed=0)
    assert held.y is not None
    assert held.reference is not None
    assert wrong.scores["clone_accuracy"].mean() == (held.y == 0).mean()
    one = 0.5 * np.abs(np.eye(CLASSES)[0] - held.reference[0]).sum()
    assert wrong.scores["total_variation"][0] == pytest.approx(one, abs=1e-6)


@pytest.mark.parametrize("bad", [np.zeros((3, CLASSES)), np.full((40, CLASSES), np.nan), np.zeros((40, CLASSES + 1))])
def test_a_clone_of_another_form_is_an_error(bad: FloatArray) -> None:
    with pytest.raises(AuditError, match="the clone answered"):
        carry_out(asking(0, lambda x: bad))  # noqa: ARG005


def test_equal_seeds_draw_the_same_and_others_do_not() -> None:
    drawn: list[float] = []

    def run(oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone:
        drawn.append(rng.random())
        return constant(0)

    for seed in (3, 3, 4):
        carry_out(run, seed=seed)
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_attack_cannot_replace_the_outer_call() -> None:
    assert getattr(Attack.carry_out, "__final__", False)


def test_findings_pool_seeds_price_the_queries_and_carry_chance() -> None:
    trials = [
        scripted(asking(20, Linear().truth)).carry_out(Linear(), Knowledge(rows(50)), exam(), budget=20, seed=seed)
        for seed in range(3)
    ]
    chance = chance_levels(exam(), Linear().facts)
    found = findings_of(trials, chance, who=Tried("scripted", "defended", View.SOFT), usd_per_query=0.001)
    first = next(f for f in found if f.metric == "clone_accuracy")
    assert (first.value, first.low, first.high) == (1.0, 1.0, 1.0)
    assert (first.queries, first.budget, first.seeds, first.cost_usd) == (20, 20, 3, 0.02)
    assert first.interval == "t over 3 seeds, 95 %"
    assert first.chance == chance_levels(exam(), Linear().facts)["clone_accuracy"]
    unlabelled = exam(labels=False)
    assert chance_levels(unlabelled, Linear().facts).keys() == {"fidelity"}


def test_a_tactic_stands_between_the_attack_and_its_meter() -> None:
    class Twice(Tactic, frozen=True):
        name: ClassVar[str] = "twice"

        def around(
            self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator
        ) -> tuple[MeteredOracle, Knowledge]:
            class Doubled:
                facts = oracle.facts

                def query(self, x: Array) -> Answers:
                    oracle.query(x)
                    return oracle.query(x)

            return MeteredOracle(Doubled(), oracle.remaining // 2), knowledge

    trial = scripted(asking(20, constant(0))).carry_out(
        Linear(), Knowledge(rows(50)), exam(), budget=40, seed=0, tactics=(Twice(),)
    )
    assert trial.queries == 40
    assert trial.attack == "Scripted() with Twice()"


def test_shapes() -> None:
    assert rows(2).shape == (2, FEATURES)
