"""The evasion part of an audit, on a small sealed model: what is counted, and in whose favour it is not."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from tests.audit.worlds import World

from garrison.audit.arms import choose_arms
from garrison.audit.evading import Evader
from garrison.audit.plan import Plan, load_plan, parse_plan
from garrison.audit.report import evasion, html
from garrison.audit.report import json as report_json
from garrison.audit.report.content import EvasionCard, Report
from garrison.audit.run import run_audit
from garrison.audit.spending import Spending
from garrison.audit.targets import changed, guarded, unguarded
from garrison.errors import AuditSpentError, PlanError
from garrison.types import DefenseSpec

PLAN = """
name = "small"
seeds = [0, 1]
test_rows = 300
outside_rows = 100
pictures = 6
usd_per_1000_queries = 2.0

[[evasions]]
name = "square"
budget = 40
parameters = { epsilon = 0.1 }

[[evasions]]
name = "hopskipjump"
answers = "labels"
budget = 80
parameters = { norm = "l2", epsilon = 1.0, steps = 20 }

[[arms]]
name = "labels alone"
keep = ["bounds"]
replaces = [{ name = "release", parameters = { mode = "labels" } }]
"""


def plan_of(text: str = PLAN) -> Plan:
    return parse_plan(text, "a test")


@pytest.fixture(scope="module")
def report(world: World) -> Report:
    plan, served = plan_of(), world.opened(world.bundle)
    baseline = world.opened(world.plain)
    arms = choose_arms(guarded(served, world.key), reference=served, baseline=baseline, key=world.key, plans=plan.arms)
    return run_audit(plan, arms, world.data)


def card(report: Report, target: str, attack: str) -> EvasionCard:
    return next(c for c in report.evasions if (c.target, c.attack) == (target, attack))


def test_every_target_is_attacked_with_the_same_pictures(report: Report) -> None:
    assert list(report.targets) == ["undefended", "outlier-exposure", "labels alone", "defended"]
    for attack in ("square", "hopskipjump"):
        for target in report.targets:
            if (target, attack) != ("labels alone", "square"):
                one = card(report, target, attack)
                assert one.pictures + one.left_out == 12
                assert one.success_undefended is not None
    assert [(item.target, item.why) for item in report.left_out] == [
        ("labels alone", "the service releases no probabilities")
    ]


def test_what_fools_the_service_need_not_fool_the_model(report: Report) -> None:
    """Misinformation names another class where the model is unsure, which is no success against the model."""
    plain, served = card(report, "undefended", "square"), card(report, "defended", "square")
    assert plain.success_undefended == plain.success_served
    assert plain.success_served.value > 0.5, "control: the undefended model can be fooled"
    assert served.success_undefended is not None
    assert served.success_undefended.value < served.success_served.value
    assert plain.queries_to_success is not None
    assert plain.distortion == pytest.approx(0.1, rel=1e-3)


def test_the_report_keeps_its_schema_and_the_page_shows_it(report: Report) -> None:
    found = json.loads(report_json.render(report))
    jsonschema.validate(found, report_json.schema(), cls=jsonschema.Draft202012Validator)
    assert report_json.parse(report_json.render(report)) == report
    page = html.render(report).decode()
    for text in ("Evasion: square", "Evasion: hopskipjump", "labels alone", "fools its model without the guard"):
        assert text in page
    assert "What a thief gets" not in page
    assert "questions for each" in report.headline
    assert {len(row) for table in evasion.evasions(report) for row in table.rows} == {6}
    assert any("Only black-box attacks" in sentence for sentence in report.limits)


def test_alarms_are_counted_by_account(world: World) -> None:
    """A detector that rings at once: every account is alarmed at its first rows, and in shadow none is."""
    ringing = {"ood-rate": {"threshold": 8.0, "edges": [0.5], "nats": [2.5, 2.0]}}
    cards = []
    for shadow in (False, True):
        watch = DefenseSpec(
            name="watch", parameters={"detectors": ringing, "action": "log", "remembered": 0}, shadow=shadow
        )
        chain = (DefenseSpec(name="bounds"), DefenseSpec(name="projection"), DefenseSpec(name="max-probability"), watch)
        target = changed(world.opened(world.bundle), None, (*chain, DefenseSpec(name="release")), "watched")
        plan = plan_of(PLAN.replace("seeds = [0, 1]", "seeds = [0]").partition("[[arms]]")[0])
        arms = choose_arms(target, baseline=world.opened(world.plain))
        evader = Evader(plan, arms, world.data, Spending(plan), lambda _message, _share: None)
        cards.append(next(c for c in evader.evade_all().cards if (c.target, c.attack) == ("defended", "hopskipjump")))
    armed, shadowed = cards
    assert armed.watched
    assert armed.alarmed == armed.pictures == 6
    assert armed.alarm_queries is not None
    assert 3 <= armed.alarm_queries <= 5
    assert armed.alarm_summed is not None
    assert armed.alarm_queries <= armed.alarm_summed <= 6 * armed.alarm_most
    assert armed.detectors == ("ood-rate",)
    assert shadowed.alarmed == 0
    assert not shadowed.detectors


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('name = "square"', 'name = "triangle"', "unknown evasion attack 'triangle'"),
        ("epsilon = 0.1", "epsilon = 0.0", "epsilon must be above 0"),
        ("epsilon = 0.1", "eps = 0.1", "unknown field"),
        ("budget = 40", "budget = 0", "must be at least 1"),
        ("pictures = 6", "pictures = 0", "must be at least 1"),
        ('name = "hopskipjump"\nanswers = "labels"\nbudget = 80', 'name = "square"\nbudget = 40', "two evasions"),
    ],
)
def test_a_plan_that_makes_no_sense_is_an_error(old: str, new: str, match: str) -> None:
    text = PLAN.replace(old, new)
    if "hopskipjump" in old:
        text = text.replace('norm = "l2", epsilon = 1.0, steps = 20', "epsilon = 0.2")
    with pytest.raises(PlanError, match=match):
        plan_of(text)


def test_a_plan_needs_something_to_do() -> None:
    with pytest.raises(PlanError, match="attacks must not be empty"):
        parse_plan('name = "nothing"', "a test")


def test_limits_on_what_is_spent_hold(world: World) -> None:
    served = world.opened(world.bundle)
    plan = plan_of(PLAN.replace("pictures = 6", "pictures = 6\nmost_queries = 300"))
    arms = choose_arms(guarded(served, world.key), reference=served, key=world.key)
    found = Evader(plan, arms, world.data, Spending(plan), lambda _message, _share: None).evade_all()
    assert found.asked <= 300
    over = [item for item in found.left_out if item.target == "defended"]
    assert any("may ask" in item.why for item in over)
    assert {item.code for item in over} == {AuditSpentError.code}
    (told,) = (text for text in run_audit(plan, arms, world.data).limits if "stopped early" in text)
    assert over[0].attack in told
    whole = run_audit(plan_of(), arms, world.data)
    assert not any("stopped early" in text for text in whole.limits), "the control: without limits"
    assert any(c.target == "outlier-exposure" for c in found.cards), "the references cost time alone"


def test_the_shipped_plan_is_read() -> None:
    plan = load_plan("evasion")
    assert {e.name for e in plan.evasions} == {"square", "hopskipjump"}
    assert not plan.attacks


def test_pictures_that_a_target_does_not_name_rightly_are_left_out(world: World) -> None:
    reject = DefenseSpec(name="reject-option", parameters={"tau": 0.9})
    chain = (DefenseSpec(name="bounds"), DefenseSpec(name="max-probability"), reject, DefenseSpec(name="release"))
    served = world.opened(world.bundle)
    target = changed(served, None, chain, "reject")
    arms: Any = choose_arms(target, baseline=world.opened(world.plain))
    plan = plan_of(PLAN.partition("[[arms]]")[0])
    found = Evader(plan, arms, world.data, Spending(plan), lambda _message, _share: None).evade_all()
    mine = next(c for c in found.cards if c.target == "defended")
    raw = unguarded(served).raw(world.data.test.x)
    assert mine.left_out > 0
    assert 0.3 < mine.pictures / 12 < 1
    assert (np.max(raw, axis=1) < 0.9).any()
