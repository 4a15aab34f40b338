"""What every registered tactic must keep."""

from __future__ import annotations

import importlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.attacks.services import Linear, rows
from tests.attacks.tactics.worlds import Accounts, knows

from garrison.attacks.base import Tactic, Trial
from garrison.attacks.exam import Exam
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, Oracle
from garrison.attacks.tactics import TACTICS
from garrison.errors import AuditError

PAGE = Path(__file__).parents[3] / "docs" / "attacks" / "tactics.md"
ATTACK = Knockoff(epochs=2, fewest_steps=2)
QUICK = {"restore-bayes": {"draws": 2000}, "restore-network": {"draws": 2000, "epochs": 4}, "sybil": {"accounts": 3}}


@pytest.fixture(params=sorted(TACTICS))
def tactic(request: pytest.FixtureRequest) -> Tactic:
    return load(request.param)


def load(name: str) -> Tactic:
    module, _, attribute = TACTICS[name].partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    found: Tactic = msgspec.convert(QUICK.get(name, {}), kind)
    return found


def trial(tactic: Tactic, service: Oracle, seed: int = 1, budget: int = 40) -> Trial:
    x = rows(30, seed=5)
    exam = Exam(x, Linear().truth(x).argmax(axis=1))
    return ATTACK.carry_out(service, knows(), exam, budget=budget, seed=seed, tactics=(tactic,))


def test_a_service_that_refuses_whole_requests_is_no_crash(tactic: Tactic) -> None:
    """Each such request is asked again row by row, so that the meter behind the tactic runs out before the attack's own."""
    service = Accounts(refuses_above=0.9)
    found = trial(tactic, service, budget=190)
    assert found.queries == 190 or found.unanswered < 20
    assert found.queries + found.cover == sum(len(part) for part in service.asked)
    assert found.unanswered > 0
    assert found.failed == 0


def test_the_registered_name_is_the_tactics_own(tactic: Tactic) -> None:
    assert TACTICS[tactic.name].endswith(f":{type(tactic).__name__}")
    assert type(tactic).around is not Tactic.around


def test_parameters_are_strict(tactic: Tactic) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"no_such_parameter": 1}, type(tactic))


def test_a_trial_through_it_is_deterministic_and_within_its_budget(tactic: Tactic) -> None:
    first, again = trial(tactic, Accounts()), trial(tactic, Accounts())
    assert (first.scores["clone_accuracy"] == again.scores["clone_accuracy"]).all()
    assert 30 <= first.queries <= 40
    assert tactic.name in {"in-distribution"} or repr(tactic) in first.attack


def test_labels_alone_are_answered_or_refused_with_a_reason(tactic: Tactic) -> None:
    service = Accounts(soft=False)
    if tactic.obstacle(service.facts, knows()):
        with pytest.raises(AuditError, match=tactic.name):
            trial(tactic, service)
    else:
        assert trial(tactic, service).queries <= 40


def test_what_is_refused_comes_back_as_refused_and_costs_no_more_than_there_is(tactic: Tactic) -> None:
    meter = MeteredOracle(Accounts(refuses_above=-1.0), 40)
    near, _ = tactic.around(meter, knows(), np.random.default_rng(0))
    found = near.query(rows(near.remaining))
    assert not found.usable.any()
    assert meter.rows <= 40


def test_rows_keep_their_order(tactic: Tactic) -> None:
    x = rows(24, seed=2)
    near, _ = tactic.around(MeteredOracle(Accounts(), 400), knows(), np.random.default_rng(0))
    found, plain = near.query(x), Linear().query(x)
    usable = found.usable
    agree = (found.labels == plain.labels)[usable].mean()
    assert usable.sum() > 12
    assert agree > (0.5 if tactic.name.startswith("restore") else 0.9)


def test_it_has_a_section_in_the_docs(tactic: Tactic) -> None:
    page = PAGE.read_text()
    assert f"## `{tactic.name}`" in page
    for name in tactic.__struct_fields__:
        assert f"`{name}`" in page, name


def test_what_it_needs_and_does_not_have_is_named() -> None:
    bare = Knowledge(rows(50))
    for name in ("in-distribution", "cover-traffic"):
        assert "no rows of the model's own kind" in load(name).obstacle(Linear().facts, bare)
    assert "given 1" in load("sybil").obstacle(Linear().facts, bare)
