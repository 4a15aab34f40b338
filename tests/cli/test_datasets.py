from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from garrison import datasets as sets
from garrison.cli.datasets import datasets
from garrison.errors import TargetExistsError, UnknownDatasetError


def test_lists_every_set() -> None:
    result = CliRunner().invoke(datasets, ["list", "--json"])
    assert {entry["name"] for entry in json.loads(result.stdout)} == set(sets.names())


def test_saves_what_load_gives(tmp_path: Path) -> None:
    out = tmp_path / "f.npz"
    result = CliRunner().invoke(datasets, ["save", "fashion-mnist", "--split", "test", "-o", str(out), "--json"])
    assert json.loads(result.stdout)["rows"] == 10_000
    with np.load(out, allow_pickle=False) as saved:
        assert saved["x"].shape == (10_000, 1, 28, 28)
        assert saved["labels"][1] == "Trouser"
    again = CliRunner().invoke(datasets, ["save", "fashion-mnist", "--split", "test", "-o", str(out)])
    assert isinstance(again.exception, TargetExistsError)


def test_the_file_has_the_name_that_was_given(tmp_path: Path) -> None:
    """numpy would write to out.npz, whatever lies there, and the message would name another file."""
    (tmp_path / "out.npz").write_bytes(b"somebody's")
    told = CliRunner().invoke(datasets, ["save", "iris", "-o", str(tmp_path / "out"), "--json"])
    assert json.loads(told.stdout)["file"] == str(tmp_path / "out")
    assert (tmp_path / "out.npz").read_bytes() == b"somebody's"
    with np.load(tmp_path / "out", allow_pickle=False) as saved:
        assert saved["x"].shape == (120, 4)
    nowhere = CliRunner().invoke(datasets, ["save", "iris", "-o", str(tmp_path / "no" / "x.npz")])
    assert "cannot be written" in str(nowhere.exception)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "out.npz"]


def test_a_model_has_no_rows(tmp_path: Path) -> None:
    result = CliRunner().invoke(datasets, ["save", "magika", "-o", str(tmp_path / "x.npz")])
    assert isinstance(result.exception, UnknownDatasetError)


def test_what_a_set_says_of_itself_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = replace(sets.describe("adult"), name="[red]a\x1b[2J", summary="[/x]s", licence="[bold]")
    monkeypatch.setattr(sets, "names", lambda: ("adult",))
    monkeypatch.setattr(sets, "describe", lambda _: odd)
    listed = CliRunner().invoke(datasets, ["list"])
    assert listed.exception is None
    assert all(part in listed.stdout for part in ("[red]a\\x1b[2J", "[/x]s", "[bold]"))
    assert "\x1b" not in listed.stdout
