"""Whole audits of small services, in this process and over HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.audit.worlds import World, build, served
from tests.models import BOUNDS, RELEASE
from tests.serving import LABELS_ONLY

from garrison.attacks.extraction.knockoff import Knockoff
from garrison.audit.arms import Arms, choose_arms
from garrison.audit.cache import TrialCache
from garrison.audit.report.content import Report
from garrison.audit.run import run_audit
from garrison.audit.targets import HttpTarget, guarded, unguarded
from garrison.client import Client


def arms_of(world: World, **changes: Any) -> Arms:
    bundle = world.opened(world.bundle)
    parts: dict[str, Any] = {"reference": bundle, "baseline": world.opened(world.plain), "key": world.key} | changes
    return choose_arms(guarded(bundle, world.key), **parts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Report]:
    world = build(tmp_path_factory.mktemp("whole"))
    return world, run_audit(world.plan, arms_of(world), world.data)


def test_findings_of_every_arm_are_there(whole: tuple[World, Report]) -> None:
    report = whole[1]
    for target in ("undefended", "outlier-exposure", "defended"):
        for answers, budgets in (("soft", (40, 80)), ("labels", (80,))):
            for budget in budgets:
                for metric in ("clone_accuracy", "fidelity"):
                    found = report.find(target, metric, answers=answers, budget=budget)
                    assert found is not None
                    assert found.value is not None
                    assert found.low is not None
                    assert found.high is not None
                    assert 0 <= found.low <= found.value <= found.high <= 1
                    assert (found.queries, found.seeds, found.complete) == (budget, 1, True)
                    assert found.cost_usd == pytest.approx(budget * 0.002)
        assert report.find(target, "served_accuracy") is not None
    assert {c.target for c in report.controls} == {"none"}
    assert {c.queries for c in report.controls} == {0}
    control = report.find("none", "clone_accuracy", answers="labels", budget=80, control=True)
    assert control is not None
    assert control.cost_usd == 0.0


def test_the_reported_figures_are_those_of_the_service(whole: tuple[World, Report]) -> None:
    """Recomputed here from the service's own answers."""
    world, report = whole
    bundle = world.opened(world.bundle)
    served_labels = guarded(bundle, world.key).query(world.data.test.x).labels
    raw = unguarded(bundle).raw(world.data.test.x).argmax(axis=1)

    def value(metric: str) -> float:
        found = report.find("defended", metric)
        assert found is not None
        assert found.value is not None
        return found.value

    assert value("served_accuracy") == pytest.approx((served_labels == world.data.test.y).mean())
    assert value("changed_top1_guard") == pytest.approx((served_labels != raw).mean())
    assert value("benign_loss_guard") == pytest.approx(1.0 - (served_labels == world.data.test.y).mean())
    outside = guarded(bundle, world.key).query(world.data.outside.x).labels
    assert value("outside_classes_used") == len(np.unique(outside))
    assert value("repeated_alike") == 1.0


def test_without_a_guard_two_arms_are_alike(whole: tuple[World, Report]) -> None:
    """Control: undefended and outlier exposure are the same network here, so equal seeds give equal clones."""
    report = whole[1]
    for budget in (40, 80):
        a = report.find("undefended", "clone_accuracy", answers="soft", budget=budget)
        b = report.find("outlier-exposure", "clone_accuracy", answers="soft", budget=budget)
        assert a is not None
        assert b is not None
        assert (a.value, a.low, a.high) == (b.value, b.low, b.high)


def test_the_report_is_the_same_again_but_for_its_time(whole: tuple[World, Report]) -> None:
    world, report = whole
    again = run_audit(world.plan, arms_of(world), world.data, cpu_threads=1)
    changes = {"created": report.created, "environment": report.environment}
    assert msgspec.structs.replace(again, **changes) == report


def test_over_http_the_figures_are_the_same(whole: tuple[World, Report], tmp_path: Path) -> None:
    world, report = whole
    with served(world, tmp_path) as url, Client(url) as client:
        bundle, plain = world.opened(world.bundle), world.opened(world.plain)
        arms = choose_arms(HttpTarget(client, url), reference=bundle, baseline=plain, key=world.key)
        found = run_audit(world.plan, arms, world.data)
    assert found.targets["defended"].where == url
    assert found.targets["defended"].manifest_digest == report.targets["defended"].manifest_digest
    assert found.targets["defended"].guard_digest == report.targets["defended"].guard_digest
    assert any("not attested" in sentence for sentence in found.limits)
    for mine in report.findings:
        other = found.find(mine.target, mine.metric, answers=mine.answers, budget=mine.budget)
        assert other is not None
        assert other.value == pytest.approx(mine.value, abs=0.02), mine  # last bits differ with the batch


def test_a_bare_url_leaves_out_what_needs_a_reference(world: World, tmp_path: Path) -> None:
    with served(world, tmp_path) as url, Client(url) as client:
        report = run_audit(world.plan, choose_arms(HttpTarget(client, url)), world.data)
    assert set(report.targets) == {"defended"}
    metrics = {f.metric for f in report.findings}
    assert "clone_accuracy" in metrics
    assert not {"fidelity", "benign_loss_guard", "benign_loss_total"} & metrics
    assert report.similarity == ()
    assert report.fidelity_against == ""
    assert any("no reference was given" in sentence for sentence in report.limits)


def test_a_service_of_labels_alone(tmp_path: Path) -> None:
    world = build(tmp_path, (BOUNDS, LABELS_ONLY))
    arms = choose_arms(guarded(world.opened(world.bundle), None), reference=world.opened(world.bundle))
    report = run_audit(world.plan, arms, world.data)
    assert report.find("defended", "clone_accuracy", answers="soft", budget=80) is None
    assert report.find("defended", "clone_accuracy", answers="labels", budget=80) is not None
    assert report.find("outlier-exposure", "clone_accuracy", answers="soft", budget=80) is not None
    assert any("labels alone" in sentence for sentence in report.limits)
    assert report.similarity == ()


def test_finished_trials_are_not_trained_again(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    run = Knockoff.run

    def counting(self: Any, oracle: Any, knowledge: Any, rng: Any) -> Any:
        trained.append(oracle.remaining)
        return run(self, oracle, knowledge, rng)

    monkeypatch.setattr(Knockoff, "run", counting)
    cache = TrialCache(tmp_path)
    first = run_audit(world.plan, arms_of(world), world.data, cache=cache)
    assert sorted(trained) == [40] * 3 + [80] * 6
    second = run_audit(world.plan, arms_of(world), world.data, cache=cache)
    assert len(trained) == 9
    assert second.findings == first.findings
    assert second.controls == first.controls
    # another guard is another target: its clones are trained, the others' are not
    tightened = guarded(world.opened(world.bundle), world.key, "label")
    arms = replace(arms_of(world), defended=tightened)
    run_audit(world.plan, arms, world.data, cache=cache)
    assert trained[9:] == [80]


def test_three_seeds_give_intervals_over_seeds(world: World) -> None:
    plan = msgspec.structs.replace(world.plan, seeds=(0, 1, 2))
    report = run_audit(plan, arms_of(world), world.data)
    found = report.find("defended", "clone_accuracy", answers="soft", budget=80)
    assert found is not None
    assert (found.interval, found.seeds) == ("t over 3 seeds, 95 %", 3)
    assert not any("seed" in sentence for sentence in report.limits)


def test_progress_rises_to_the_end(world: World) -> None:
    told: list[float] = []
    run_audit(world.plan, arms_of(world), world.data, cpu_threads=1, report=lambda _, share: told.append(share))
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] <= 1


def test_a_failing_service_leaves_findings_marked(tmp_path: Path) -> None:
    world = build(tmp_path, (BOUNDS, RELEASE), exposed=False)
    with served(world, tmp_path / "state") as url, Client(url, attempts=1) as client:
        target = HttpTarget(client, url)
        query, asked = target.query, [0]

        def flaky(x: Any) -> Any:
            asked[0] += len(x)
            if 900 < asked[0] < 1000:
                return client.predict(x[:, :, :3])  # refused before it is sent: a failure, not a refusal by the guard
            return query(x)

        target.query = flaky  # type: ignore[method-assign]
        report = run_audit(world.plan, choose_arms(target), world.data)
    assert any(not f.complete for f in report.findings)
    assert any("lost to failures" in sentence for sentence in report.limits)
