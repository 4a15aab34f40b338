"""What every registered evasion attack must keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from tests.attacks.evasion.pictures import Shown, carried_out

from garrison.attacks.base import Goal
from garrison.attacks.evasion import EVASIONS
from garrison.attacks.evasion.base import ROUNDING, Evasion, Pictures
from garrison.audit.plan import load_evasion
from garrison.errors import AuditError, PlanError, QueryBudgetError

DOCS = Path(__file__).parents[3] / "docs" / "attacks"
NORMS: list[Literal["linf", "l2"]] = ["linf", "l2"]
ENOUGH = {"linf": 0.25, "l2": 0.9}


@pytest.fixture(params=[(name, norm) for name in sorted(EVASIONS) for norm in NORMS], ids="-".join)
def attack(request: pytest.FixtureRequest) -> Evasion:
    name, norm = request.param
    return load_evasion(name, {"norm": norm, "epsilon": ENOUGH[norm], **QUICK.get(name, {})})


QUICK: dict[str, dict[str, Any]] = {"hopskipjump": {"steps": 20}}


def test_the_registered_name_is_the_attacks_own(attack: Evasion) -> None:
    assert EVASIONS[attack.name].endswith(f":{type(attack).__name__}")
    assert attack.goal is Goal.EVASION
    assert type(attack).carry_out is Evasion.carry_out, "an attack does not grade itself"


def test_parameters_are_strict_and_stand_in_the_name(attack: Evasion) -> None:
    for wrong in ({"no_such_parameter": 1}, {"epsilon": 0.0}, {"norm": "l1"}):
        with pytest.raises(PlanError, match=attack.name):
            load_evasion(attack.name, wrong)
    assert f"norm='{attack.norm}'" in repr(attack)
    assert msgspec.convert(msgspec.to_builtins(attack), type(attack)) == attack


@pytest.mark.parametrize("soft", [True, False])
def test_what_it_finds_lies_within_the_ball_and_the_range(attack: Evasion, *, soft: bool) -> None:
    service = Shown(soft=soft)
    trial = carried_out(attack, service)
    pictures = service.pictures()
    assert trial.fools["served"].sum() >= 2, "control: this model can be fooled"
    apart = np.abs(trial.found.astype(np.float64) - pictures.x).reshape(len(pictures.x), -1)
    size = apart.max(axis=1) if attack.norm == "linf" else np.sqrt((apart**2).sum(axis=1))
    np.testing.assert_allclose(size, trial.distance, atol=1e-6)
    assert (size[trial.fools["served"]] <= attack.epsilon * (1 + ROUNDING)).all()
    assert (service.labels(trial.found) != pictures.y)[trial.fools["served"]].all()
    assert trial.found.dtype == np.float32


@pytest.mark.parametrize("soft", [True, False])
def test_a_picture_alone_as_among_others_and_twice_alike(attack: Evasion, *, soft: bool) -> None:
    together = carried_out(attack, Shown(soft=soft), budget=40)
    again = carried_out(attack, Shown(soft=soft), budget=40)
    alone = carried_out(attack, Shown(soft=soft), budget=40, at_once=1)
    apart = carried_out(attack, Shown(soft=soft), budget=40, pictures=Shown().pictures(accounts=np.arange(1, 5)))
    other = carried_out(attack, Shown(soft=soft), budget=40, seed=1)
    for trial in (again, alone, apart):
        np.testing.assert_array_equal(trial.found, together.found)
        np.testing.assert_array_equal(trial.queries, together.queries)
        np.testing.assert_array_equal(trial.succeeded_at, together.succeeded_at)
    assert (other.found != together.found).any()


@pytest.mark.parametrize("budget", [1, 2, 7, 40])
def test_the_budget_holds_for_each_picture(attack: Evasion, budget: int) -> None:
    service = Shown(soft=False)
    trial = carried_out(attack, service, budget=budget)
    assert (trial.queries <= budget).all()
    assert service.rows == trial.queries.sum()


def test_the_first_success_is_counted_by_the_base(attack: Evasion) -> None:
    service = Shown()
    pictures = service.pictures(accounts=np.arange(1, 5))
    trial = carried_out(attack, service, pictures=pictures)
    for i, at in enumerate(trial.succeeded_at.tolist()):
        rows = np.concatenate(service.asked[i + 1])
        assert len(rows) == trial.queries[i]
        apart = np.abs(rows.astype(np.float64) - pictures.x[i]).reshape(len(rows), -1)
        size = apart.max(axis=1) if attack.norm == "linf" else np.sqrt((apart**2).sum(axis=1))
        good = (size <= attack.epsilon * (1 + ROUNDING)) & (service.labels(rows) != pictures.y[i])
        assert at == (np.argmax(good) + 1 if good.any() else 0)


def test_whole_numbers_stay_whole_and_within(attack: Evasion) -> None:
    service = Shown(dtype=np.uint8, high=255.0)
    trial = carried_out(attack, service)
    assert trial.found.dtype == np.uint8
    assert trial.fools["served"].any()
    near = trial.distance[trial.fools["served"]]
    assert (near <= attack.epsilon * (1 + ROUNDING)).all()


def test_refusals_and_uncertain_answers_are_no_success_and_no_crash(attack: Evasion) -> None:
    doubtful = carried_out(attack, Shown(uncertain=True), budget=30)
    assert not doubtful.succeeded_at.any()
    refused = carried_out(attack, Shown(refuses_above=0.5), budget=30)
    assert refused.unanswered >= 1
    assert (refused.queries <= 30).all()


def test_what_it_cannot_attack_is_named(attack: Evasion) -> None:
    open_ended = Shown(high=np.inf)
    pictures = Shown().pictures()
    with pytest.raises(AuditError, match="does not state the range"):
        attack.carry_out(open_ended, pictures, {}, budget=5, seed=0)
    for nothing in (Pictures(pictures.x[:0], pictures.y[:0]), pictures):
        with pytest.raises(QueryBudgetError):
            attack.carry_out(Shown(), nothing, {}, budget=0 if len(nothing.x) else 5, seed=0)


def test_every_attack_has_its_page(attack: Evasion) -> None:
    page = (DOCS / f"{attack.name}.md").read_text()
    for heading in ("## What it does", "## What stops it", "## What it costs", "## Source", "## Parameters"):
        assert heading in page
    for name in attack.__struct_fields__:
        assert f"`{name}`" in page, name
