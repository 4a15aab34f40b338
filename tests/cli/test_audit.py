"""`garrison audit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.audit.worlds import PLAN, World, build, served
from tests.commands import as_json, fails, run, save

from garrison.audit import opening
from garrison.audit.holding import holding
from garrison.audit.report.tables import Cell, Table
from garrison.cli.audit import _grid
from garrison.cli.output import console
from garrison.client import Client, Prediction
from garrison.errors import AuditError, ConfigError, FolderInUseError, NoTrustedKeyError, PlanError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def files(world: World, tmp_path: Path) -> list[str]:
    (tmp_path / "plan.toml").write_text(PLAN)
    y = world.data.test.y
    assert y is not None
    save(tmp_path / "test.npz", x=world.data.test.x, y=y)
    save(tmp_path / "thief.npz", x=world.data.surrogate.x)
    rows = ["--test", str(tmp_path / "test.npz"), "--surrogate", str(tmp_path / "thief.npz")]
    return ["--plan", str(tmp_path / "plan.toml"), *rows, "--trust", str(world.bundle.parent / "owner.pub")]


def test_a_bundle_is_audited_in_this_process(world: World, files: list[str], tmp_path: Path) -> None:
    result = run("audit", str(world.bundle), *files, "-o", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert (
        "For $0.08" in result.stdout or "For $0.16" in result.stdout
    )  # the misinformation key is drawn anew for each world
    for part in ("served accuracy", "control: random", "What does not hold"):
        assert part in result.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["targets"]) == {"outlier-exposure", "defended"}
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    kept = [path.suffix for path in (tmp_path / "out" / ".cache").iterdir()]
    assert (kept.count(".json"), kept.count(".answers")) == (7, 2)


def test_two_audits_do_not_write_into_one_folder(world: World, files: list[str], tmp_path: Path) -> None:
    words = ["audit", str(world.bundle), *files, "-o"]
    with holding(tmp_path / "out" / ".cache"):
        told = fails(FolderInUseError, *words, str(tmp_path / "out"))
        assert str(tmp_path / "out") in told
        assert "another folder" in told
        assert not list((tmp_path / "out").glob("*.json"))
        assert run(*words, str(tmp_path / "other")).exit_code == 0, "the control: another folder"
    assert run(*words, str(tmp_path / "out")).exit_code == 0, "the control: nobody else writes there"


def test_a_running_service_with_its_reference(world: World, files: list[str], tmp_path: Path) -> None:
    with served(world, tmp_path / "state") as url:
        found = as_json("audit", url, *files, "--reference", str(world.bundle), "-o", str(tmp_path / "mine.json"))
    assert found["targets"]["defended"]["where"] == url
    assert found == json.loads((tmp_path / "mine.json").read_text())
    assert (tmp_path / "mine.html").is_file()


@pytest.mark.parametrize(("flag", "proved"), [((), True), (("--no-verify",), False)])
def test_signatures_are_checked_unless_one_says_otherwise(
    world: World,
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flag: tuple[str, ...],
    *,
    proved: bool,
) -> None:
    seen: set[bool] = set()

    class Seeing(Client):
        def predict(self, x: Any, **options: Any) -> Prediction:
            found = super().predict(x, **options)
            seen.add(found.proved)
            return found

    monkeypatch.setattr(opening, "Client", Seeing)
    with served(world, tmp_path / "state") as url:
        assert run("audit", url, *files, *flag, "--queries", "1", "-o", str(tmp_path / "out")).exit_code == 0
    assert seen == {proved}


def test_labels_alone_in_this_process(world: World, files: list[str], tmp_path: Path) -> None:
    found = as_json("audit", str(world.bundle), *files, "--release", "label", "-o", str(tmp_path / "out"))
    mine = [f for f in found["findings"] if f["target"] == "defended" and f["metric"] == "clone_accuracy"]
    assert {f["answers"] for f in mine} == {"labels"}
    assert any("release policy was changed" in sentence for sentence in found["limits"])


def test_what_is_wrong_is_said(world: World, files: list[str], tmp_path: Path) -> None:
    out = ["-o", str(tmp_path / "out")]
    assert "keeps its own" in fails(ConfigError, "audit", "http://127.0.0.1:1", *files, "--release", "full", *out)
    assert "URL or the folder" in fails(ConfigError, "audit", str(tmp_path / "none"), *files, *out)
    fails(NoTrustedKeyError, "audit", str(world.bundle), *files[:-2], *out)
    fails(PlanError, "audit", str(world.bundle), *files, *out, "--plan", "none")
    few = save(tmp_path / "few.npz", x=np.zeros((3, 1, 8, 8), np.float32))
    assert "give more rows" in fails(PlanError, "audit", str(world.bundle), *files, *out, "--surrogate", str(few))
    assert not (tmp_path / "out").exists()
    beneath = str(tmp_path / "few.npz" / "out")  # a file: said before anything is asked, and not after the work
    assert "no report can be written" in fails(AuditError, "audit", "http://127.0.0.1:1", *files, "-o", beneath)


def test_names_in_a_report_are_shown_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    rows = ((Cell("[red]arm"), Cell("[/x]5\x1b[2J", "[bold]detail\u202e")),)
    console.print(_grid(Table("[red]title", "[/y]caption", ("", "[red]head"), rows)))
    told = capfd.readouterr().out
    for part in ("[red]arm", "[/x]5\\x1b[2J", "[bold]detail\\u202e", "[red]title", "[/y]caption", "[red]head"):
        assert part in told
    assert "\x1b" not in told


TWO_CELLS = """
[[attacks]]
budgets = [20]
parameters = { epochs = 1, fewest_steps = 2 }

[[columns]]
name = "naive"

[[arms]]
name = "labels alone"
replaces = [{ name = "release", parameters = { mode = "labels" } }]
"""


def test_a_table_says_how_long_it_takes_and_needs_no_target(world: World, files: list[str], tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN[: PLAN.index("[[attacks]]")] + TWO_CELLS)
    bundles = ["--reference", str(world.bundle), "--plain", str(world.plain)]
    result = run("audit", *files, *bundles, "-o", str(tmp_path / "out"), "--threads", "1")
    assert result.exit_code == 0, result.output
    assert "4 clones of 4 arms: about 8 s of processor time" in result.stderr
    for part in ("The thief: knockoff", "labels alone", "the chain, as served", "beaten"):
        assert part in result.stdout
    fails(ConfigError, "audit", *files, "-o", str(tmp_path / "out"))
    fails(PlanError, "audit", *files, *bundles, "--fill", "no such arm", "-o", str(tmp_path / "out"))
