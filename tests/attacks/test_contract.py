"""What every registered attack must keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.attacks.services import Linear, rows

from garrison.attacks.base import Attack, Goal
from garrison.attacks.exam import Exam
from garrison.attacks.extraction import ATTACKS
from garrison.attacks.knowledge import Knowledge
from garrison.audit.plan import load_attack
from garrison.errors import AuditError, PlanError

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


def test_every_attack_has_its_page(attack: Attack) -> None:
    page = (DOCS / f"{attack.name}.md").read_text()
    for heading in ("## What it does", "## What stops it", "## What it costs", "## Source", "## Parameters"):
        assert heading in page
    for name in attack.__struct_fields__:
        assert f"`{name}`" in page, name
