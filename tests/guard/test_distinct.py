"""A row that was not asked before is never taken for one that was; every error is on the side of the budget."""

from __future__ import annotations

import numpy as np
import pytest
from tests.guard.conftest import make_inputs

from garrison.guard import distinct
from garrison.guard.distinct import DistinctRows
from garrison.guard.row_hash import LONG
from garrison.types import Array, Batch, Caller


def batch(x: Array, counts: tuple[int, ...], callers: str = "", left: int = 1000) -> Batch:
    names = callers or "a" * len(counts)
    rows = np.repeat(np.arange(len(counts), dtype=np.intp), counts)
    limits = (left,) * len(counts)
    return Batch({"x": x}, rows, tuple(map(Caller, names)), limits, limits)


def count(seen: DistinctRows, of: Batch, refused: tuple[str | None, ...] = ()) -> list[int]:
    codes = refused or (None,) * of.requests
    found = seen.count(of, codes)
    assert seen.count(of, codes) == found  # to count is not to learn: a batch whose answers fail is counted again
    seen.learn(of, codes)
    return found


def test_a_row_is_new_once_for_each_caller() -> None:
    seen, x = DistinctRows(), make_inputs(6)
    assert count(seen, batch(x, (2, 4))) == [2, 4]
    assert count(seen, batch(x, (6,))) == [0]
    assert count(seen, batch(x, (6,), "b")) == [6]
    assert count(seen, batch(np.concatenate([x, x + 1, x + 1]), (9, 9), "ab")) == [3, 6]


def test_a_changed_bit_makes_another_row_and_minus_zero_does_not() -> None:
    seen, x = DistinctRows(), np.zeros((1, 12), np.float32)
    assert count(seen, batch(x, (1,))) == [1]
    assert count(seen, batch(-x, (1,))) == [0]
    assert count(seen, batch(np.nextafter(x, 1, dtype=np.float32), (1,))) == [1]


def test_long_rows_are_known_again_by_their_caller_and_nobody_elses() -> None:
    """They are hashed another way."""
    x = np.random.default_rng(0).random((3, LONG // 4), dtype=np.float32)
    seen = DistinctRows()
    assert count(seen, batch(x, (1, 2))) == [1, 2]
    assert count(seen, batch(x, (3,))) == [0]
    assert count(seen, batch(x, (3,), "b")) == [3]
    changed = x.copy()
    changed[:, -1] = np.nextafter(changed[:, -1], 2)
    assert count(seen, batch(changed, (3,))) == [3]
    zero = np.zeros_like(x[:1])
    assert count(seen, batch(np.concatenate([zero, -zero]), (2,))) == [1]


def test_what_is_not_charged_is_not_known_and_what_the_guard_refuses_is() -> None:
    seen, x = DistinctRows(), make_inputs(3)
    assert count(seen, batch(x, (3,)), ("request.input",)) == [0]
    assert count(seen, batch(x, (3,)), ("guard.reject-option",)) == [3]
    assert count(seen, batch(x, (3,))) == [0]


def test_no_limit_no_count() -> None:
    seen, x = DistinctRows(), make_inputs(3)
    assert count(seen, batch(x, (3,), left=-1)) == [0]
    assert count(seen, batch(x, (3,))) == [3]


def test_a_full_table_forgets_and_never_invents() -> None:
    seen, x = DistinctRows(slots=64), make_inputs(2000)
    assert count(seen, batch(x, (2000,))) == [2000]  # none of them was asked before, and none is free
    again = count(seen, batch(x, (2000,)))[0]
    assert 2000 - 64 <= again <= 2000  # what was forgotten counts again


def test_what_a_batch_would_ask_is_looked_at_without_being_learned() -> None:
    seen, x = DistinctRows(), make_inputs(6)
    of = batch(x, (2, 2, 2), left=4)
    assert seen.over(of, ()) == [False, False, True]
    assert seen.over(of, (True, False, False)) == [False, False, False]
    assert seen.over(of, ()) == [False, False, True]
    assert count(seen, of, (None, None, "request.budget_exhausted")) == [2, 2, 0]
    assert seen.over(batch(x[:4], (4,), left=0), ()) == [False]  # repeats cost nothing
    assert seen.over(batch(x, (6,), left=1), ()) == [True]


def test_no_more_becomes_known_than_the_limit_whatever_the_hosts_processes_say() -> None:
    """Each of them may not have heard yet of what the others have charged."""
    now, x = [0.0], make_inputs(30)
    seen = DistinctRows(20, daily=True, clock=lambda: now[0])
    free = DistinctRows()
    for first in range(0, 30, 5):
        asked = batch(x[first : first + 5], (5,), left=20)  # as if nothing were charged
        assert seen.over(asked, ()) == [first >= 20]
        assert free.over(asked, ()) == [False]  # control: the host alone lets all of it through
        count(seen, asked, ("request.budget_exhausted",) if first >= 20 else ())
        count(free, asked)
    assert seen.over(batch(x[:20], (20,), left=20), ()) == [False]  # repeats
    assert seen.over(batch(x[20:25], (5,), "b", left=20), ()) == [False]  # another caller
    assert seen.over(batch(x[20:21], (1,), left=-1), ()) == [False]  # no limit
    now[0] = 86_400.0
    assert seen.over(batch(x[20:25], (5,), left=20), ()) == [False]  # the next day


def test_callers_counts_take_a_bounded_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "_CALLERS", 3)
    seen, x = DistinctRows(1), make_inputs(2)
    for name in "abcd":
        count(seen, batch(x[:1], (1,), name))
    assert [seen.over(batch(x[1:], (1,), name), ()) for name in "abcd"] == [[False], [True], [True], [True]]


def test_the_same_new_row_twice_counts_once() -> None:
    seen, x = DistinctRows(), np.repeat(make_inputs(1), 5, axis=0)
    assert seen.over(batch(x, (2, 3), left=1), ()) == [False, False]
    assert count(seen, batch(x, (2, 3))) == [1, 0]


def test_forgetting_all_makes_all_new_and_nothing_is_kept() -> None:
    seen, x = DistinctRows(), make_inputs(4)
    count(seen, batch(x, (4,)))
    assert (seen.changes, seen.dump()) == (0, b"")
    seen.load(seen.dump())
    assert count(seen, batch(x, (4,))) == [4]


@pytest.mark.parametrize("slots", [0, 2, 6, 100])
def test_a_table_has_a_power_of_two_places(slots: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        DistinctRows(slots=slots)
