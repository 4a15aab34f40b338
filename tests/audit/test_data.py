"""Rows by name or file, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.audit.worlds import PLAN

from garrison.audit.data import load_data, load_rows
from garrison.audit.plan import parse_plan
from garrison.errors import PlanError, UnknownDatasetError

X = np.arange(200 * 4, dtype=np.float32).reshape(200, 4)
Y = np.arange(200) % 3


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_files_from_the_command_line_take_the_plans_place(tmp_path: Path) -> None:
    test = save(tmp_path / "t.npz", x=X, y=Y, labels=np.array(["a", "b", "c"]))
    thief = save(tmp_path / "s.npz", x=X + 1)
    plan = parse_plan(PLAN.replace("test_rows = 300", "test_rows = 150"), "a test")
    data = load_data(plan, test=test, surrogate=thief)
    assert (len(data.test.x), len(data.y), data.test.labels, data.test.source) == (150, 150, ("a", "b", "c"), "t.npz")
    assert len(data.surrogate.x) == 200
    assert np.array_equal(data.outside.x, X + 1)
    assert len({data.test.sha256, data.surrogate.sha256}) == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": X}, "an array x"),
        ({"x": X[:0], "y": Y[:0]}, "at least one row"),
        ({"x": X, "y": Y[:5]}, r"shape \(200,\)"),
        ({"x": X, "y": Y.astype(np.float32)}, "whole class numbers"),
        ({"x": X}, "need class numbers"),
        ({"x": np.array([{}] * 3, dtype=object)}, "plain arrays"),
    ],
)
def test_bad_files(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    thief = save(tmp_path / "s.npz", x=X)
    with pytest.raises(PlanError, match=message):
        load_data(parse_plan(PLAN, "a test"), test=save(tmp_path / "t.npz", **arrays), surrogate=thief)


def test_missing_and_too_few_rows(tmp_path: Path) -> None:
    plan = parse_plan(PLAN, "a test")
    with pytest.raises(PlanError, match=r"--test FILE\.npz"):
        load_data(plan)
    test = save(tmp_path / "t.npz", x=X, y=Y)
    with pytest.raises(PlanError, match="up to 80 surrogate rows and there are 79"):
        load_data(plan, test=test, surrogate=save(tmp_path / "s.npz", x=X[:79]))
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        load_rows(str(tmp_path / "none.npz"), "test")
    with pytest.raises(UnknownDatasetError):
        load_rows("no-such-set:train", "test")
