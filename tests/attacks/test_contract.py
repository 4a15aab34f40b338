"""What every registered attack must keep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.attacks.services import Linear, rows, softmax

from garrison.attacks.base import Attack, Goal
from garrison.attacks.exam import Exam
from garrison.attacks.extraction import ATTACKS
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, OracleFacts
from garrison.audit.plan import load_attack
from garrison.errors import AuditError, PlanError
from garrison.types import Array

DOCS = Path(__file__).parents[2] / "docs" / "attacks"
QUICK: dict[str, dict[str, Any]] = {
    "adaptive-retraining": {"rounds": 2},
    "boundary-walking": {"walkers": 2, "family": "linear"},
    "critical-points": {"lines": 2},
    "equation-solving": {"steps": 2},
    "hyperparameter-stealing": {"extra": 2},
    "kernel-equations": {"steps": 2},
    "lowd-meek": {"halvings": 2},
    "network-equations": {"steps": 2},
    "path-finding": {"epsilon": 2},
    "path-finding-missing": {"epsilon": 2},
    "uniform-retraining": {"hidden": 2, "family": "linear"},
}
SEARCHES = {"critical-points", "hyperparameter-stealing", "path-finding"}
"""Attacks that end when they know enough, or find no question that fits into the budget."""
TRAINING: dict[str, Any] = {"epochs": 2, "fewest_steps": 2}


@pytest.fixture(params=sorted(ATTACKS))
def attack(request: pytest.FixtureRequest) -> Attack:
    return load_attack(request.param, quick(request.param))


def quick(name: str) -> dict[str, Any]:
    return QUICK.get(name, TRAINING)


def test_the_registered_name_is_the_attacks_own(attack: Attack) -> None:
    assert ATTACKS[attack.name].endswith(f":{type(attack).__name__}")
    assert isinstance(attack.goal, Goal)


def test_parameters_are_strict_and_stand_in_the_name(attack: Attack) -> None:
    with pytest.raises(PlanError, match=attack.name):
        load_attack(attack.name, {"no_such_parameter": 1})
    first = next(iter(quick(attack.name)))
    with pytest.raises(PlanError, match=first):
        load_attack(attack.name, {first: 0})
    assert f"{first}=2" in repr(attack)
    assert msgspec.convert(msgspec.to_builtins(attack), type(attack)) == attack


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_parameter_that_is_no_number_is_told(attack: Attack, value: float) -> None:
    for name in attack.__struct_fields__:
        if isinstance(getattr(attack, name), float):
            with pytest.raises(PlanError, match=name):
                load_attack(attack.name, {name: value})


def test_an_attack_does_not_grade_itself(attack: Attack) -> None:
    assert type(attack).carry_out is Attack.carry_out


@pytest.mark.parametrize("soft", [True, False])
def test_a_trial_is_deterministic_and_within_its_budget(attack: Attack, *, soft: bool) -> None:
    x = rows(30, seed=5)
    exam = Exam(x, Linear().truth(x).argmax(axis=1))
    if attack.obstacle(Linear(soft=soft).facts) or attack.lacks(Knowledge(rows(200))):
        with pytest.raises(AuditError, match=attack.name):
            attack.carry_out(Linear(soft=soft), Knowledge(rows(200)), exam, budget=64, seed=1)
        return
    trials = [
        attack.carry_out(Linear(soft=soft), Knowledge(rows(200)), exam, budget=64, seed=seed) for seed in (1, 1, 2)
    ]
    first, again, other = (trial.scores["clone_accuracy"] for trial in trials)
    assert (first == again).all()
    assert first.shape == other.shape == (30,)
    # A search may end for want of a question that fits into the budget.
    assert trials[0].queries <= (64 if attack.asks else 0)
    assert attack.name in SEARCHES or trials[0].queries == (64 if attack.asks else 0)


def test_a_service_that_refuses_all_gives_a_clone_and_no_crash(attack: Attack) -> None:
    if attack.obstacle(Linear().facts):
        pytest.skip(f"{attack.name} does not attack tables")
    exam = Exam(rows(5), np.zeros(5, dtype=np.int64))
    if attack.lacks(Knowledge(rows(20))):
        with pytest.raises(AuditError, match=attack.name):
            attack.carry_out(Linear(), Knowledge(rows(20)), exam, budget=10, seed=0)
        return
    trial = attack.carry_out(Linear(refuses_above=-1.0), Knowledge(rows(20)), exam, budget=10, seed=0)
    assert trial.scores["clone_accuracy"].shape == (5,)


def test_a_service_that_refuses_some_rows_is_attacked_all_the_same(attack: Attack) -> None:
    """It refuses a request for one of its rows, and the thief asks row by row; no row more than the budget."""
    service = Linear(refuses_above=0.8)
    if attack.obstacle(service.facts) or attack.lacks(Knowledge(rows(90))):
        return
    x = rows(30, seed=5)
    trial = attack.carry_out(service, Knowledge(rows(90)), Exam(x, Linear().truth(x).argmax(axis=1)), budget=60, seed=0)
    assert trial.queries == sum(len(part) for part in service.asked) <= 60
    assert (trial.unanswered > 0) == attack.asks
    assert trial.failed == 0


@dataclass(frozen=True)
class Odd:
    """A service of rows of any form: the class says whether the first half of a row is larger than the second."""

    facts: OracleFacts

    def query(self, x: Array) -> Answers:
        assert x.dtype == self.facts.dtype
        assert x.shape[1:] == self.facts.shape
        assert ((x >= self.facts.low) & (x <= self.facts.high)).all()
        flat = x.reshape(len(x), -1).astype(np.float64)
        half = max(1, flat.shape[1] // 2)
        z = (flat[:, :half].sum(axis=1) - flat[:, half : 2 * half].sum(axis=1)) / half
        p = softmax(np.stack([np.zeros(len(x)), 0.1 * z], axis=1))
        nobody = np.zeros(len(x), dtype=np.bool_)
        return Answers(p.argmax(axis=1).astype(np.int64), p, nobody, nobody)


def odd(shape: tuple[int, ...], dtype: type, low: float, high: float) -> Odd:
    def edge(value: float) -> Array:
        return np.full(shape, value, np.float64 if np.isinf(value) else dtype)

    return Odd(OracleFacts(shape, np.dtype(dtype), edge(low), edge(high), classes=2, soft=True))


ODD = {
    "two axes without a range": odd((2, 3), np.float64, -np.inf, np.inf),
    "one feature": odd((1,), np.float32, -1, 1),
}
PICTURES = {
    "whole numbers in a square": odd((12, 12), np.uint8, 0, 255),
    "channels last": odd((12, 12, 3), np.float32, -5, 5),
}


@pytest.mark.parametrize("form", [*ODD, *(pytest.param(form, marks=pytest.mark.slow) for form in PICTURES)])
def test_rows_of_any_form_are_attacked_or_the_obstacle_is_told(attack: Attack, form: str) -> None:
    service, rng = (ODD | PICTURES)[form], np.random.default_rng(0)
    low, high = (np.where(np.isfinite(e), e, d) for e, d in ((service.facts.low, -3), (service.facts.high, 3)))
    x = (low + rng.random((80, *service.facts.shape)) * (high - low)).astype(service.facts.dtype)
    if attack.obstacle(service.facts) or attack.lacks(Knowledge(x)):
        return
    trial = attack.carry_out(service, Knowledge(x), Exam(x, service.query(x).labels), budget=40, seed=0)
    assert trial.queries <= 40
    assert trial.failed == 0


def test_every_attack_has_its_page(attack: Attack) -> None:
    page = (DOCS / f"{attack.name}.md").read_text()
    parts = (
        "What it does",
        "What the attacker must know",
        "What it gets",
        "What stops it",
        "What it costs",
        "Source",
        "Parameters",
    )
    for part in parts:
        assert f"\n## {part}" in page, part
    for name in attack.__struct_fields__:
        assert f"`{name}`" in page, name
