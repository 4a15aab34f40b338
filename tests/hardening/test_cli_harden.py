from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from garrison.cli import cli
from garrison.errors import ModelFileError, TargetExistsError
from garrison.hardening.artifact import read_hardened


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, ["harden", *map(str, arguments)])


def usual(folder: Path, target: Path, *more: Any) -> tuple[Any, ...]:
    given = ("--data", folder / "train.npz", "--calibration", folder / "unseen.npz", "-o", target)
    return (folder / "headed.onnx", *given, "--threads", "1", "--benign-loss", "0.01", *more)


def test_the_folder_is_written_and_described(folder: Path, tmp_path: Path) -> None:
    found = call(*usual(folder, tmp_path / "h", "--budget", "1000/day", "--release", "label"))
    assert found.exit_code == 0, found.output
    assert "tau" in found.stdout
    assert "asked 1.00%" in found.stdout
    hardened = read_hardened(tmp_path / "h")
    chain = {spec.name: spec.parameters for spec in hardened.guard}
    assert chain["budget"] == {"rows": 1000, "period": "day", "distinct": 0, "price_per_1000_rows": 0.0}
    assert chain["release"]["mode"] == "labels"


def test_json_is_one_object_on_standard_output(folder: Path, tmp_path: Path) -> None:
    found = call(*usual(folder, tmp_path / "h", "--json", "--release", "rounded", "--labels", "a,b,c,d,e,f,g,h,i,j"))
    told = json.loads(found.stdout)
    assert told["hardened"]["metrics"]["tau"] > 0
    assert told["hardened"]["labels"][0] == "a"
    assert told["hardened"]["guard"][-1]["parameters"]["decimals"] == 3


def test_an_existing_folder_is_kept_unless_forced(folder: Path, tmp_path: Path) -> None:
    assert call(*usual(folder, tmp_path / "h")).exit_code == 0
    assert isinstance(call(*usual(folder, tmp_path / "h")).exception, TargetExistsError)
    assert call(*usual(folder, tmp_path / "h", "--force")).exit_code == 0


def test_notes_go_to_standard_error(folder: Path, tmp_path: Path) -> None:
    found = call(folder / "headed.onnx", "--data", folder / "train.npz", "-o", tmp_path / "h", "--threads", "1")
    assert found.exit_code == 0
    assert "--calibration" in found.stderr
    assert "note:" not in found.stdout


@pytest.mark.parametrize("budget", ["many", "10/week", "-3", "1.5"])
def test_a_bad_budget_is_wrong_usage(folder: Path, tmp_path: Path, budget: str) -> None:
    found = call(*usual(folder, tmp_path / "h", "--budget", budget))
    assert found.exit_code == 2
    assert "10000/day" in found.stderr


def test_a_missing_file_is_a_typed_error(folder: Path, tmp_path: Path) -> None:
    found = call(tmp_path / "none.onnx", "--data", folder / "train.npz", "-o", tmp_path / "h")
    assert isinstance(found.exception, ModelFileError)
    assert not (tmp_path / "h").exists()
