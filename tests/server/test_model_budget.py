"""Nobody gets answers to more different rows than its limit, also where several servers charge side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.stalls import PATIENT_SECONDS

from garrison.errors import UnavailableError
from garrison.limits import Limits
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.server import budgets
from garrison.server.batching import Batcher
from garrison.server.budgets import BudgetBook
from garrison.server.model_budget import Left, ModelBudget
from garrison.server.rate_limits import RateLimits
from garrison.server.waiting import Waiting

NOON = 1_750_000_000.0


def budget(book: BudgetBook | None, rows: int = 1000, distinct: int = 100, period: str = "ever") -> ModelBudget:
    return ModelBudget("m", rows, period, book, distinct)


def test_rows_and_distinct_rows_are_counted_apart(tmp_path: Path) -> None:
    both = budget(BudgetBook(tmp_path))
    assert both.left("alice") == Left(1000, 100)
    assert both.charge_fresh([("alice", 30)]) == [True]
    assert both.charge([("alice", 50)]) == [True]
    assert both.left("alice") == Left(950, 70)
    assert both.left_at_once(["alice"]) == {"alice": Left(950, 70)}
    assert both.left("bob") == Left(1000, 100)


@pytest.mark.parametrize("distinct", [0, 100])
def test_a_lone_caller_is_told_and_charged_what_several_are(tmp_path: Path, distinct: int) -> None:
    """In its own way only where rows in all are the only limit: distinct rows are charged too."""
    own = budget(BudgetBook(tmp_path), rows=6400, distinct=distinct)
    assert own.left_one_at_once("alice") is None  # not known yet
    assert not own.charge_one_at_once("alice", 1)
    assert own.charge([("alice", 1)]) == [True]
    own.charge_fresh([("alice", 1)])
    assert own.left_one_at_once("alice") == own.left("alice") == Left(6399, distinct - 1)
    assert own.charge_one_at_once("alice", 2) is (distinct == 0)
    assert own.left("alice").rows == (6399 if distinct else 6397)
    unlimited = budget(None, rows=0, distinct=0)
    assert unlimited.left_one_at_once("alice") == Left(-1, -1)
    assert not unlimited.charge_one_at_once("alice", 1)


def test_who_is_charged_beyond_the_limit_is_refused_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers ask the same enclave for the same caller at once: it calls the rows of both new, and knows them afterwards."""
    monkeypatch.setattr(budgets, "_FRESH_SECONDS", PATIENT_SECONDS)  # what was read stays good, however long this takes
    one, other = budget(BudgetBook(tmp_path)), budget(BudgetBook(tmp_path))
    assert one.left("alice") == other.left("alice") == Left(1000, 100)
    assert one.charge_fresh([("alice", 80)]) == [True]
    assert other.charge_fresh([("alice", 80)]) == [False]  # its answer is held back
    for server in (one, other):
        server.book._accounts.clear()  # type: ignore[union-attr]  # as after a quarter of a second
        assert server.left("alice") == Left(0, 0)  # so the 80 rows cannot be had as repeats
        assert server.left_at_once(["alice"]) == {"alice": Left(0, 0)}
    assert one.charge_fresh([("bob", 100)]) == [True]
    assert one.left("bob") == Left(1000, 0)  # control: who is at the limit may still repeat


def test_beyond_a_day_s_limit_there_is_a_next_day(tmp_path: Path) -> None:
    now = [NOON]
    daily = budget(BudgetBook(tmp_path, lambda: now[0]), period="day")
    assert daily.charge_fresh([("alice", 80)]) == [True]
    assert daily.charge_fresh([("alice", 80)]) == [False]
    assert daily.left("alice") == Left(0, 0)
    now[0] += 86_400
    assert daily.left("alice") == Left(1000, 100)


def test_new_rows_that_could_not_be_charged_are_owed(tmp_path: Path) -> None:
    """The enclave calls them new once. While the disk fails nothing is answered, and what it said new is charged with the next batch."""

    class Broken(ModelBudget):
        def charge_fresh_at_once(self, wants: Sequence[tuple[str, int]]) -> None:
            return None

        def charge_fresh(self, wants: Sequence[tuple[str, int]]) -> list[bool]:
            if fails:
                raise UnavailableError("in use elsewhere")
            return super().charge_fresh(wants)

    new = [7]

    def call(asks: Sequence[Ask]) -> list[Reply]:
        return [Reply("", "", b"", -1, b"", Outcome("ok", 7, distinct=new.pop() if new else 0)) for _ in asks]

    async def ask(queue: Batcher) -> str:
        return (await queue.submit(Waiting("alice", b"", -1, "", 1.0))).code

    fails = True
    book = BudgetBook(tmp_path)
    budget = Broken("m", 1000, "ever", book, 100)

    async def main() -> None:
        nonlocal fails
        with ThreadPoolExecutor(max_workers=1) as worker:
            queue = Batcher(call, budget, worker, Limits())
            for _ in range(20):
                assert await ask(queue) == "unavailable"
            assert len(queue._owed) <= 2, "what is owed does not grow with every failed batch"
            fails = False
            assert await ask(queue) == ""
        assert budget.left("alice").fresh == 93

    asyncio.run(main())


def test_a_crash_gives_no_distinct_row_back(tmp_path: Path) -> None:
    assert budget(BudgetBook(tmp_path)).charge_fresh([("alice", 60)]) == [True]
    assert budget(BudgetBook(tmp_path)).left("alice").fresh <= 40


def test_without_limits_nothing_is_counted(tmp_path: Path) -> None:
    free = budget(None, 0, 0)
    assert free.left("alice") == Left(-1, -1)
    assert free.charge_fresh([("alice", 10**9)]) == free.charge_fresh_at_once([("alice", 10**9)]) == [True]
    rows_only = budget(BudgetBook(tmp_path), distinct=0)
    assert rows_only.left("alice") == Left(1000, -1)
    assert rows_only.charge_fresh([("alice", 10**9)]) == [True]


@pytest.mark.parametrize(
    ("of", "left", "refused", "expected"),
    [
        (budget(None, 50, 0), Left(7, -1), False, {"ratelimit-policy": '"rows";q=50', "ratelimit": '"rows";r=7'}),
        (budget(None, 50, 0), Left(0, -1), True, {"ratelimit-policy": '"rows";q=50', "ratelimit": '"rows";r=0'}),
        (
            budget(None, 50, 20, "day"),
            Left(7, 3),
            True,
            {
                "ratelimit-policy": '"rows";q=50;w=86400, "distinct-rows";q=20;w=86400',
                "ratelimit": '"rows";r=7;t=32000, "distinct-rows";r=3;t=32000',
                "retry-after": "32000",
            },
        ),
        (budget(None, 0, 0), Left(-1, -1), False, {}),
        (budget(None, 50, 0), None, False, {}),
    ],
    ids=["ever", "ever-refused", "day-refused", "none", "unknown"],
)
def test_what_is_left_is_a_header(of: ModelBudget, left: Left | None, refused: bool, expected: dict[str, str]) -> None:
    limits = RateLimits(of, lambda: NOON - NOON % 86_400 + 54_400)
    assert dict(limits.headers(left, refused=refused)) == expected
