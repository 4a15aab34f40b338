from __future__ import annotations

import numpy as np
import pytest
from tests.guard.conftest import make_facts, make_inputs

from garrison.errors import GuardError
from garrison.guard.base import View
from garrison.guard.defenses.budget import Budget
from garrison.guard.pipeline import Pipeline, Progress
from garrison.types import Batch, Caller, DefenseSpec


def judge(rows: tuple[int, ...], callers: tuple[str, ...], remaining: tuple[int, ...]) -> list[bool]:
    batch = Batch(
        {"x": make_inputs(sum(rows))},
        np.repeat(np.arange(len(rows), dtype=np.intp), rows),
        tuple(Caller(c) for c in callers),
        remaining,
    )
    codes = Budget(rows=100)(View(batch, make_facts())).codes
    return [bool(codes[batch.request_of_row == i].all()) for i in range(len(rows))]


def test_refuses_what_exceeds_the_rest() -> None:
    assert judge((3, 4), ("a", "b"), (3, 3)) == [False, True]


def test_counts_one_callers_requests_within_a_batch_together() -> None:
    assert judge((2, 2, 1, 2), ("a", "a", "a", "b"), (3, 3, 3, 3)) == [False, True, False, False]


@pytest.mark.parametrize(
    ("bad", "expected"), [(np.nan, None), (0.5, "request.budget_exhausted")], ids=["refused", "control"]
)
def test_does_not_count_what_bounds_refused_in_the_same_batch(bad: float, expected: str | None) -> None:
    x = make_inputs(4)
    x[0, 0] = bad
    batch = Batch({"x": x}, np.array([0, 0, 1, 1], dtype=np.intp), (Caller("a"), Caller("a")), (2, 2))
    chain = (
        DefenseSpec(name="bounds"),
        DefenseSpec(name="budget", parameters={"rows": 10}),
        DefenseSpec(name="release"),
    )
    progress = Progress.begin(batch)
    Pipeline(chain, make_facts()).admit(progress)
    assert progress.refused == [None if expected else "request.input", expected]


def test_no_limit() -> None:
    assert judge((5,), ("a",), (-1,)) == [False]


def test_a_host_may_only_lower_it() -> None:
    Budget(rows=5).check_tightened(Budget(rows=10))
    with pytest.raises(GuardError):
        Budget(rows=11).check_tightened(Budget(rows=10))
    with pytest.raises(GuardError):
        Budget(rows=10, period="day").check_tightened(Budget(rows=10))
