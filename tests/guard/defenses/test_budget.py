from __future__ import annotations

import numpy as np
import pytest
from tests.guard.conftest import make_facts, make_inputs

from garrison.errors import GuardError
from garrison.guard.base import View
from garrison.guard.defenses.budget import Budget
from garrison.guard.distinct import DistinctRows
from garrison.guard.pipeline import Pipeline, Progress
from garrison.types import Array, Batch, Caller, DefenseSpec


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


def distinct_view(x: Array, left: int, rows: int = 100) -> View:
    budget = Budget(rows=100, distinct=50)
    batch = Batch({"x": x}, np.zeros(len(x), dtype=np.intp), (Caller("a"),), (rows,), (left,))
    return View(batch, make_facts(), state=budget.fresh_state(make_facts()))


def test_repeats_cost_no_distinct_rows() -> None:
    budget, x = Budget(rows=100, distinct=50), make_inputs(4)
    view = distinct_view(x, 4)
    assert not budget(view).codes.any()
    assert budget(distinct_view(x, 3)).codes.all()  # a table that knows nothing
    assert isinstance(view.state, DistinctRows)
    view.state.learn(view.batch, (None,))
    batch = Batch(view.batch.inputs, view.batch.request_of_row, view.batch.callers, (100,), (0,))
    assert not budget(View(batch, make_facts(), state=view.state)).codes.any()
    few = Batch(view.batch.inputs, view.batch.request_of_row, view.batch.callers, (3,), (0,))
    assert budget(View(few, make_facts(), state=view.state)).codes.all()  # of rows in all they do


def test_without_a_limit_of_their_own_distinct_rows_are_not_looked_at() -> None:
    assert Budget(rows=100).fresh_state(make_facts()) is None
    batch = Batch({"x": make_inputs(4)}, np.zeros(4, dtype=np.intp), (Caller("a"),), (100,), (-1,))
    assert not Budget(rows=100)(View(batch, make_facts())).codes.any()


@pytest.mark.parametrize("wrong", [{"distinct": 11}, {"distinct": -1}, {"price_per_1000_rows": -1.0}, {"rows": 0}])
def test_values_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget(**({"rows": 10} | wrong))  # type: ignore[arg-type]


def test_a_host_may_bound_distinct_rows_and_not_let_more_through() -> None:
    signed = Budget(rows=10, distinct=5)
    Budget(rows=10, distinct=4).check_tightened(signed)
    Budget(rows=10, distinct=4).check_tightened(Budget(rows=10))
    for looser in (Budget(rows=10), Budget(rows=10, distinct=6), Budget(rows=10, distinct=5, price_per_1000_rows=1.0)):
        with pytest.raises(GuardError):
            looser.check_tightened(signed)
