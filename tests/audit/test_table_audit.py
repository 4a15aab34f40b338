"""A whole table on a small model: filled, kept, gone on with, shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from tests.audit.tables import TABLE
from tests.audit.worlds import World, build
from tests.audit.worlds import rows as named
from tests.models import BOUNDS, RELEASE, SCORE, misinform

from garrison.attacks.base import Attack
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.audit.arms import Arms, choose_arms
from garrison.audit.cache import TrialCache
from garrison.audit.data import AuditData
from garrison.audit.grid import ArmPlan
from garrison.audit.pace import Pace, clones_of, spoken, workload
from garrison.audit.plan import Plan, parse_plan, within
from garrison.audit.report import grid, html
from garrison.audit.report import json as report_json
from garrison.audit.report.content import Report
from garrison.audit.report.pareto import pareto_figure
from garrison.audit.run import run_audit
from garrison.audit.targets import guarded
from garrison.types import DefenseSpec


def plan_of(text: str = TABLE) -> Plan:
    return parse_plan(text.replace("seeds = [0, 1]", "seeds = [0]"), "a test")


def rows_of(world: World) -> AuditData:
    own = named(world.data.test.x[:60], world.data.test.y[:60], "own kind")  # type: ignore[index]
    return dataclasses.replace(world.data, own=own)


def arms_of(world: World, plan: Plan) -> Arms:
    served, plain = world.opened(world.bundle), world.opened(world.plain)
    target = guarded(served, world.key)
    return choose_arms(target, reference=served, baseline=plain, key=world.key, plans=plan.arms)


def audited(world: World, folder: Path | None = None, plan: Plan | None = None, **more: Any) -> Report:
    chosen = plan or plan_of()
    return run_audit(chosen, arms_of(world, chosen), rows_of(world), cache=TrialCache(folder), **more)


@pytest.fixture(scope="module")
def report(world: World, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return audited(world, tmp_path_factory.mktemp("table"))


def test_every_cell_is_filled_or_says_why(report: Report) -> None:
    assert len(report.cells) == 5 * 2 * 3
    filled = {(c.arm, c.thief, c.column) for c in report.cells if c.clone_accuracy is not None}
    assert len(filled) == 3 * 5 + 2 + 1
    assert ("rounded", "knockoff", "defense-aware") in filled
    assert all(c.why for c in report.cells if c.clone_accuracy is None)
    for cell in report.cells:
        if cell.clone_accuracy is None:
            continue
        found = next(
            f
            for f in report.findings
            if (f.target, f.attack, f.tactic, f.metric, f.budget)
            == (cell.arm, cell.thief, cell.column, "clone_accuracy", cell.budget)
        )
        assert cell.clone_accuracy.value == found.value
        assert cell.alarm is None, "no arm has detectors"


def test_the_report_keeps_its_schema_and_reads_back(report: Report) -> None:
    found = json.loads(report_json.render(report))
    jsonschema.validate(found, report_json.schema(), cls=jsonschema.Draft202012Validator)
    assert report_json.parse(report_json.render(report)) == report
    empty = next(cell for cell in found["cells"] if cell["clone_accuracy"] is None)
    empty["why"] = ""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, report_json.schema(), cls=jsonschema.Draft202012Validator)


def test_the_page_shows_the_table_and_the_figure(report: Report) -> None:
    page = html.render(report).decode()
    for text in (
        "The thief: knockoff",
        "The thief: jbda",
        "What is stolen at which price",
        "the chain, as served",
        "labels alone",
    ):
        assert text in page
    assert page.count("<svg") == 2
    assert "What each thief gets" not in page
    table = grid.cells(report, "knockoff")
    assert [row[0].text for row in table.rows] == [
        "undefended",
        "outlier exposure only",
        "rounded",
        "labels alone",
        "the chain, as served",
    ]
    assert {len(row) for row in table.rows} == {len(table.head)}
    assert "it begins with such rows" in grid.cells(report, "jbda").caption
    alone = pareto_figure(report, standalone=True)
    assert "xmlns" in alone
    assert "#010203" not in alone


def test_what_honest_users_get_is_measured_for_every_arm(report: Report) -> None:
    for arm in report.targets:
        assert report.find(arm, "served_accuracy") is not None
    rounded = report.find("rounded", "mean_l1_guard")
    assert rounded is not None
    assert rounded.value is not None
    assert 0 < rounded.value < 0.5
    assert report.targets["rounded"].chain == ("bounds", "release")
    assert report.targets["rounded"].overridden


class Killed(BaseException):
    pass


def test_an_interrupted_table_goes_on_where_it_stopped(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    trained: list[str] = []
    run, most = Knockoff.run, 4

    def counting(self: Attack, *args: Any) -> Any:
        if len(trained) == most:
            raise Killed
        trained.append(self.name)
        return run(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Knockoff, "run", counting)
    with pytest.raises(Killed):
        audited(world, tmp_path, cpu_threads=1)
    assert len(trained) == most
    most = 10**6
    told: list[tuple[str, float]] = []
    second = audited(world, tmp_path, cpu_threads=1, report=lambda *said: told.append(said))
    clones = sum(c.clone_accuracy is not None for c in report.cells if c.thief == "knockoff")
    two_budgets = sum(
        c.clone_accuracy is not None for c in report.cells if c.thief == "knockoff" and c.column != "in-distribution"
    )
    assert len(trained) == clones + two_budgets, "each clone once"
    assert second.cells == report.cells
    assert second.findings == report.findings
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert any("left" in text for text, _ in told)


def test_the_minutes_leave_cells_empty_and_say_so(world: World) -> None:
    found = audited(world, plan=within(plan_of(), minutes=1e-9))
    assert all(cell.clone_accuracy is None for cell in found.cells)
    assert any("minutes" in cell.why for cell in found.cells)
    assert found.pareto == ()


def test_a_bare_service_has_one_row(world: World) -> None:
    bare = choose_arms(guarded(world.opened(world.bundle), world.key), plans=plan_of().arms)
    found = run_audit(within(plan_of(), minutes=1e-9), bare, rows_of(world))
    assert set(found.targets) == {"defended"}
    assert set(found.missing) == {"undefended", "outlier-exposure", "rounded", "labels alone"}


@pytest.mark.slow
def test_trials_of_a_service_with_a_memory_begin_anew(tmp_path: Path) -> None:
    watch = DefenseSpec(name="repeat-watch", parameters={"rows": 10})
    world = build(tmp_path, (BOUNDS, SCORE, misinform(0.6), RELEASE, watch))
    plan = plan_of()
    first = audited(world, tmp_path / "kept", plan)
    assert first.find("defended", "served_accuracy") is not None
    assert not list((tmp_path / "kept").glob("defended-*.answers")), "nothing is replayed"
    assert list((tmp_path / "kept").glob("rounded-*.answers"))


def test_what_is_left_is_told_honestly(world: World) -> None:
    plan = plan_of()
    work = workload(plan, arms_of(world, plan).targets())
    assert clones_of(work) == 3 * (2 * 2 + 1 + 2) + 4 + 2
    pace = Pace(work, threads=2)
    assert pace.left == pytest.approx(pace.total / 2)
    step, _ = work[0]
    before = pace.left
    pace.done(step, seconds=10 * before)
    assert pace.left > before, "it is slower than foretold"
    assert [spoken(s) for s in (40, 720, 6600)] == ["40 s", "12 min", "1 h 50 min"]
    assert msgspec.structs.replace(ArmPlan(name="a"), keep=()).changes
