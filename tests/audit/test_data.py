"""Rows by name or file, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.audit.worlds import PLAN

from garrison.attacks.oracle import OracleFacts
from garrison.audit.data import load_data, load_rows
from garrison.audit.plan import parse_plan
from garrison.errors import PlanError, UnknownDatasetError

X = np.arange(200 * 4, dtype=np.float32).reshape(200, 4)
Y = np.arange(200) % 3
FACTS = OracleFacts((4,), X.dtype, np.zeros(4), np.full(4, 1000.0), 3, soft=True)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_files_from_the_command_line_take_the_plans_place(tmp_path: Path) -> None:
    test = save(tmp_path / "t.npz", x=X, y=Y, labels=np.array(["a", "b", "c"]))
    thief = save(tmp_path / "s.npz", x=X + 1)
    plan = parse_plan(PLAN.replace("test_rows = 300", "test_rows = 150"), "a test")
    data = load_data(plan, FACTS, test=test, surrogate=thief)
    assert data.test.y is not None
    assert (len(data.test.x), len(data.test.y), data.test.labels, data.test.source) == (
        150,
        150,
        ("a", "b", "c"),
        "t.npz",
    )
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
        ({"x": X}, "need whole class numbers"),
        ({"x": np.array([{}] * 3, dtype=object)}, "plain arrays"),
    ],
)
def test_bad_files(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    thief = save(tmp_path / "s.npz", x=X)
    with pytest.raises(PlanError, match=message):
        load_data(parse_plan(PLAN, "a test"), FACTS, test=save(tmp_path / "t.npz", **arrays), surrogate=thief)


def test_missing_and_too_few_rows(tmp_path: Path) -> None:
    plan = parse_plan(PLAN, "a test")
    with pytest.raises(PlanError, match=r"--test FILE\.npz"):
        load_data(plan, FACTS)
    test = save(tmp_path / "t.npz", x=X, y=Y)
    with pytest.raises(PlanError, match="up to 80 surrogate rows and there are 79"):
        load_data(plan, FACTS, test=test, surrogate=save(tmp_path / "s.npz", x=X[:79]))
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        load_rows(str(tmp_path / "none.npz"), "test")
    with pytest.raises(UnknownDatasetError):
        load_rows("no-such-set:train", "test")


DRAWN = "else_uniform = true\ntest = 'fashion-mnist:test'\nsurrogate = 'mnist:train'" + PLAN


def test_rows_that_do_not_fit_are_drawn_from_the_range_where_the_plan_says_so() -> None:
    data = load_data(parse_plan(DRAWN, "a test"), FACTS)
    assert data.replaced == ("test", "surrogate")
    assert data.test.y is None
    assert data.test.x.shape == (300, 4)
    assert 0 <= data.test.x.min() < 50
    assert 950 < data.test.x.max() <= 1000
    assert not np.array_equal(data.test.x[:300], data.surrogate.x[:300])
    again = load_data(parse_plan(DRAWN, "a test"), FACTS)
    assert again.test.sha256 == data.test.sha256


def test_without_a_range_none_can_be_drawn() -> None:
    endless = OracleFacts((4,), X.dtype, np.full(4, -np.inf), np.full(4, np.inf), 3, soft=True)
    with pytest.raises(PlanError, match=r"does not state the range.*--test FILE\.npz"):
        load_data(parse_plan(DRAWN, "a test"), endless)


def test_given_files_are_never_replaced(tmp_path: Path) -> None:
    wide = save(tmp_path / "t.npz", x=np.zeros((5, 9), dtype=np.float32), y=np.zeros(5, dtype=np.int64))
    assert load_data(parse_plan(DRAWN, "a test"), FACTS, test=wide).test.x.shape == (5, 9)


def test_a_thief_may_have_rows_of_the_models_own_kind(tmp_path: Path) -> None:
    test, own = save(tmp_path / "t.npz", x=X, y=Y), save(tmp_path / "o.npz", x=X + 2, y=Y)
    plan = parse_plan("in_distribution_rows = 20" + PLAN, "a test")
    data = load_data(plan, FACTS, test=test, surrogate=save(tmp_path / "s.npz", x=X), in_distribution=own)
    assert data.own is not None
    assert data.own.x.shape == (20, 4)
