"""A plan with many attacks: what applies is carried out, what does not is named, what was paid for is not asked again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.attacks.services import FEATURES, Linear, rows
from tests.audit.worlds import World
from tests.audit.worlds import rows as named

from garrison.attacks.exam import Exam, Loot
from garrison.attacks.extraction.equation_solving import EquationSolving
from garrison.attacks.oracle import Answers
from garrison.audit.arms import choose_arms
from garrison.audit.cache import TrialCache
from garrison.audit.data import AuditData, silent
from garrison.audit.plan import Plan, parse_plan, within
from garrison.audit.run import run_audit
from garrison.audit.spending import Spending
from garrison.audit.targets import Identity, TargetName, guarded
from garrison.audit.trials import Looted, Thief
from garrison.audit.words import failed
from garrison.errors import AuditSpentError, PlanError, ServiceError
from garrison.types import Array

QUICK = "parameters = { epochs = 2, fewest_steps = 2 }"
MANY = f"""
name = "many"
in_distribution_rows = 50
[[attacks]]
name = "equation-solving"
a_feature = [1.0, 4.0]
[[attacks]]
name = "knockoff"
budgets = [40]
{QUICK}
[[attacks]]
name = "knockoff"
budgets = [40]
tactics = [{{ name = "repeats", times = 2 }}, {{ name = "top-1" }}]
{QUICK}
[[attacks]]
name = "knockoff"
budgets = [40]
tactics = [{{ name = "cover-traffic", ratio = 1.0 }}]
{QUICK}
"""
ID = Identity("here", "m", "1", "", "", None, False, ())


class Target(Linear):
    """The linear service with a name."""

    identity = ID


class Dying(Target):
    """Is killed, with the audit, after so many rows."""

    def __init__(self, rows_left: int) -> None:
        super().__init__()
        self.left = rows_left

    def query(self, x: Array) -> Answers:
        if len(x) > self.left:
            raise KeyboardInterrupt
        self.left -= len(x)
        return super().query(x)


def data(*, own: bool = True) -> AuditData:
    x = rows(60, seed=5)
    kind = named(rows(50, seed=6), None, "own kind") if own else None
    return AuditData(
        named(x, Linear().truth(x).argmax(axis=1), "own"), named(rows(300), None, "s"), named(rows(30), None, "o"), kind
    )


def thief(plan: Plan, folder: Path | None = None, rows_of: AuditData | None = None, exam: Exam | None = None) -> Thief:
    found = rows_of or data()
    x = found.test.x
    return Thief(
        plan=plan,
        data=found,
        exam=exam or Exam(x, found.test.y, Linear().truth(x)),
        reference_digest="",
        cache=TrialCache(folder),
        spending=Spending(plan),
        tell=silent,
        targets=1,
    )


def attacked(thief: Thief, target: Target | None = None) -> Looted:
    return thief.attack(TargetName.DEFENDED, target or Target())


def tried(found: Looted) -> set[tuple[str, str, int]]:
    return {(f.attack, f.tactic, f.queries) for f in found.findings if f.metric == "fidelity"}


def test_budgets_a_feature_and_tactics_stand_in_the_findings() -> None:
    found = attacked(thief(parse_plan(MANY, "a test")))
    d = FEATURES + 1
    assert tried(found) == {
        ("equation-solving", "naive", d),
        ("equation-solving", "naive", 4 * d),
        ("knockoff", "naive", 40),
        ("knockoff", "repeats + top-1", 40),
        ("knockoff", "cover-traffic", 40),
    }
    assert not found.left_out
    cover = next(f for f in found.findings if f.tactic == "cover-traffic")
    assert (cover.cover, cover.cost_usd) == (40, 0.08)


def test_what_cannot_be_carried_out_is_named() -> None:
    found = attacked(thief(parse_plan(MANY, "a test"), rows_of=data(own=False)), Target(soft=False))
    assert not tried(found)
    assert len(found.left_out) == 5
    assert {(item.why, item.code) for item in found.left_out} == {("the service releases labels alone", "")}
    soft = attacked(thief(parse_plan(MANY, "a test"), rows_of=data(own=False)))
    (left,) = soft.left_out
    assert left.attack == "knockoff with cover-traffic, 40 queries, soft"
    assert "no rows of the model's own kind" in left.why


def test_an_attack_that_fails_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attacked(thief(parse_plan(MANY, "a test")))

    def run(*_: object) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(EquationSolving, "run", run)
    found = attacked(thief(parse_plan(MANY, "a test")))
    assert not whole.left_out  # control
    assert {(item.attack.split(",")[0], item.code) for item in found.left_out} == {
        ("equation-solving", "audit.attack_failed")
    }
    assert all("LinAlgError: SVD did not converge" in item.why for item in found.left_out)
    assert found.findings == [f for f in whole.findings if f.attack != "equation-solving"]
    (sentence,) = failed(found.left_out)
    assert "equation-solving" in sentence
    assert failed(whole.left_out) == []


def test_a_target_that_is_gone_ends_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise ServiceError("no answer")

    monkeypatch.setattr(EquationSolving, "run", run)
    with pytest.raises(ServiceError):
        attacked(thief(parse_plan(MANY, "a test")))


def test_who_has_the_model_already_asks_no_more() -> None:
    plan = parse_plan("enough = 0.999" + MANY, "a test")
    found = attacked(thief(plan))
    assert tried(found) == {("equation-solving", "naive", FEATURES + 1)}
    assert {item.why for item in found.left_out} == {"equation-solving, 7 queries, soft has the model already"}


@pytest.mark.parametrize("sure", [True, False])
def test_after_a_thief_who_says_that_nothing_is_left_a_part_of_the_model_is_enough(
    monkeypatch: pytest.MonkeyPatch, *, sure: bool
) -> None:
    """An attack's own word chooses what else is tried, where the exam does not belie it; the control does not say it."""
    solve = EquationSolving.run

    def run(self: EquationSolving, *args: Any) -> Loot:
        clone = solve(self, *args)
        return Loot(clone.clone if isinstance(clone, Loot) else clone, settled=sure)

    monkeypatch.setattr(EquationSolving, "run", run)
    unreached = "enough = 2.0"
    left = {
        s: len(attacked(thief(parse_plan(f"{unreached}\nsettled = {s}" + MANY, "a test"))).left_out) for s in (0.9, 2.0)
    }
    assert bool(left[0.9]) == sure
    assert not left[2.0]  # control: what is measured has the last word


def test_limits_bound_what_the_service_is_asked() -> None:
    target = Target()
    found = attacked(thief(within(parse_plan(MANY, "a test"), queries=80)), target)
    assert sum(len(x) for x in target.asked) <= 80 + 3 * 64  # and the probes of its fingerprint
    assert {item.attack.split(",")[0] for item in found.left_out} == {
        "knockoff with repeats + top-1",
        "knockoff with cover-traffic",
    }
    assert all("of 80 are left" in item.why for item in found.left_out)
    assert {item.code for item in found.left_out} == {AuditSpentError.code}


def test_an_audit_that_was_killed_asks_nothing_twice(tmp_path: Path) -> None:
    plan = parse_plan(MANY, "a test")
    whole = Target()
    expected = attacked(thief(plan), whole)
    probes = 64 + 60 + 30  # of the three kinds of rows, as far as there are so many
    killed = Dying(probes + 7 + 28 + 20)
    with pytest.raises(KeyboardInterrupt):
        attacked(thief(plan, tmp_path), killed)
    again = Target()
    found = attacked(thief(plan, tmp_path), again)
    assert [(f.metric, f.value) for f in found.findings] == [(f.metric, f.value) for f in expected.findings]
    paid = sum(len(x) for x in (*killed.asked, *again.asked)) - 2 * probes
    assert paid == sum(len(x) for x in whole.asked) - probes


COVERED = f"""
name = "hidden"
[[attacks]]
name = "knockoff"
budgets = [40]
{QUICK}
[[attacks]]
name = "knockoff"
budgets = [40]
tactics = [{{ name = "cover-traffic", ratio = 1.5 }}]
{QUICK}
"""
HIDDEN = f"""{COVERED}
[[attacks]]
name = "knockoff"
budgets = [40]
tactics = [{{ name = "sybil", accounts = 4 }}]
{QUICK}
"""


def test_who_hides_from_a_service_that_remembers_nobody_gets_what_he_gets_in_the_open(
    world: World, tmp_path: Path
) -> None:
    """So such a trial is not done again. The control arm does it: nothing is kept there."""
    plan, target = parse_plan(HIDDEN, "a test"), guarded(world.opened(world.bundle), world.key)
    own = dataclasses.replace(world.data, own=named(world.data.test.x[:50], world.data.test.y[:50], "own kind"))  # type: ignore[index]
    found = []
    for folder in (tmp_path, None):
        each = thief(plan, folder, own, Exam(own.test.x, own.test.y))
        findings = each.attack(TargetName.DEFENDED, target).findings
        accuracy = {f.tactic: f.value for f in findings if f.metric == "clone_accuracy"}
        assert {f.tactic: f.cover for f in findings} == {"naive": 0, "cover-traffic": 60, "sybil": 0}
        found.append((each.asked[TargetName.DEFENDED], accuracy))
    (shared, same), (all_asked, alone) = found
    assert shared == 40
    assert all_asked > 100, "control: the rows were asked again"
    assert same["cover-traffic"] == same["sybil"] == same["naive"] == alone["naive"]
    assert alone["sybil"] == pytest.approx(alone["naive"], abs=0.05), "but for rounding in other batches"


def test_who_hides_from_a_service_that_may_remember_asks_anew(tmp_path: Path) -> None:
    plan, target = parse_plan(COVERED, "a test"), Target()
    attacked(thief(plan, tmp_path), target)
    assert sum(map(len, target.asked)) - (64 + 60 + 30) >= 40 + 100


def test_an_unknown_tactic_or_parameter_is_refused() -> None:
    for bad in ('{ name = "guess" }', '{ name = "repeats", often = 3 }', "{ times = 3 }"):
        text = f'name = "n"\n[[attacks]]\nbudgets = [5]\ntactics = [{bad}]\n'
        with pytest.raises(PlanError, match="tactic"):
            parse_plan(text, "a test")


def test_a_report_shows_many_thieves(world: World) -> None:
    text = MANY.replace(
        'name = "equation-solving"\na_feature = [1.0, 4.0]', f'name = "knockoff"\nbudgets = [20]\n{QUICK}'
    )
    bundle = world.opened(world.bundle)
    own = dataclasses.replace(world.data, own=named(world.data.test.x[:50], world.data.test.y[:50], "own kind"))  # type: ignore[index]
    report = run_audit(parse_plan(text, "a test"), choose_arms(guarded(bundle, world.key), reference=bundle), own)
    assert "ways tried" in report.headline
    assert {f.tactic for f in report.findings} == {"naive", "repeats + top-1", "cover-traffic"}
    assert all(f.value is not None and np.isfinite(f.value) for f in report.findings if f.metric == "fidelity")
