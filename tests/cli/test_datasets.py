from __future__ import annotations

import json
from pathlib import Path

import numpy as np
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


def test_a_model_has_no_rows(tmp_path: Path) -> None:
    result = CliRunner().invoke(datasets, ["save", "magika", "-o", str(tmp_path / "x.npz")])
    assert isinstance(result.exception, UnknownDatasetError)
