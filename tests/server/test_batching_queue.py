"""Who waits for a batch: the queue is bounded and fair, and nobody is computed or charged who has no use of the answer."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.server.batches import FREE, Clock, Echo, batcher, waiting
from tests.stalls import PATIENT_SECONDS

from garrison.errors import UnavailableError
from garrison.limits import Limits
from garrison.server.batching import Batcher
from garrison.server.budgets import FILE_NAME, BudgetBook
from garrison.server.model_budget import Left, ModelBudget
from garrison.server.stores import sqlite
from garrison.server.waiting import Turns


def test_a_full_queue_refuses_and_recovers() -> None:
    async def main() -> None:
        with batcher(Echo(0.05), queue_requests=3, inline_rows=1) as queue:
            taken = [queue.submit(waiting(k, 2.0, f"caller {k}")) for k in range(3)]
            with pytest.raises(UnavailableError, match="3 requests are waiting"):
                queue.submit(waiting(3))
            assert len(await asyncio.gather(*taken)) == 3
            assert (await queue.submit(waiting(4))).body == b"4"

    asyncio.run(main())


def test_who_has_gone_is_not_computed() -> None:
    async def main() -> None:
        echo = Echo(held=True)
        with batcher(echo, inline_rows=1) as queue:
            first = queue.submit(waiting(0, 2.0))
            await echo.computing()
            futures = [queue.submit(waiting(k)) for k in range(1, 4)]
            futures[1].cancel()
            echo.go.set()
            await asyncio.gather(first, futures[0], futures[2])
            assert echo.batches == [[b"0"], [b"1", b"3"]]

    asyncio.run(main())


def test_what_cannot_be_charged_any_more_is_not_answered() -> None:
    class Elsewhere(ModelBudget):
        """As if another server had used the budget up between the question and the answer."""

        def left_at_once(self, callers: Iterable[str]) -> dict[str, Left]:
            return dict.fromkeys(callers, Left(10, -1))

        def charge_at_once(self, wants: Sequence[tuple[str, int]]) -> None:
            return None

        def charge(self, wants: Sequence[tuple[str, int]]) -> list[bool]:
            return [k % 2 == 0 for k in range(len(wants))]

    async def main() -> None:
        with ThreadPoolExecutor(max_workers=1) as worker:
            queue = Batcher(Echo(), Elsewhere("m", 10, "ever", None), worker, Limits())
            replies = await asyncio.gather(*(queue.submit(waiting(k)) for k in range(4)))
        assert [reply.code for reply in replies] == ["", "request.budget_exhausted"] * 2
        assert [reply.body for reply in replies] == [b"0", b"", b"2", b""]

    asyncio.run(main())


def test_one_caller_with_many_requests_puts_another_off_by_one_batch_at_most() -> None:
    async def main() -> None:
        echo = Echo(0.02, held=True)
        with batcher(echo, inline_rows=1, compute_rows=8, queue_requests=20_000, queue_seconds=1e6) as queue:
            greedy = [queue.submit(waiting(k)) for k in range(10_000)]
            await echo.computing()
            assert len(echo.batches) == 1
            bob = queue.submit(waiting(-1, caller="bob"))
            echo.go.set()
            assert (await bob).body == b"-1"
            assert b"-1" in echo.batches[1]
            assert not all(reply.done() for reply in greedy)
            for reply in greedy:
                reply.cancel()

    asyncio.run(main())


def test_one_caller_cannot_fill_the_queue() -> None:
    async def main() -> None:
        with batcher(Echo(0.05), queue_requests=100, inline_rows=1) as queue:
            taken = [queue.submit(waiting(k)) for k in range(50)]
            with pytest.raises(UnavailableError, match="which is your share"):
                queue.submit(waiting(50))
            taken += [queue.submit(waiting(k, caller=f"other {k}")) for k in range(20)]
            assert {reply.code for reply in await asyncio.gather(*taken)} == {""}

    asyncio.run(main())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in ("batching", "waiting"):
        monkeypatch.setattr(f"garrison.server.{module}.time", found)
    return found


def test_whose_deadline_passes_is_told_so_and_neither_computed_nor_charged(clock: Clock) -> None:
    async def main() -> None:
        echo = Echo(held=True)
        with batcher(echo, inline_rows=1) as queue:
            first = queue.submit(waiting(0, 2.0))
            await echo.computing()
            late = queue.submit(waiting(1, deadline=clock.now + 0.05))
            good = queue.submit(waiting(2, deadline=clock.now + 5.0))
            queue.sweep()
            assert not late.done()  # control
            clock.now += 0.1
            queue.sweep()
            assert late.done()  # while the model still computes
            assert not first.done()
            assert (late.result().code, late.result().outcome.rows) == ("unavailable", 0)
            unswept = queue.submit(waiting(3, deadline=clock.now + 0.05))
            clock.now += 0.1
            echo.go.set()
            assert [(await reply).body for reply in (first, good)] == [b"0", b"2"]
            assert (await unswept).code == "unavailable"
            assert echo.batches == [[b"0"], [b"2"]]
            pair = queue.submit(waiting(4, 2.0)), queue.submit(waiting(5, deadline=clock.now + 0.1))
            assert [reply.code for reply in await asyncio.gather(*pair)] == ["", ""]  # nobody waits: it is in time
            with pytest.raises(UnavailableError):
                queue.submit(waiting(6, deadline=clock.now - 1.0))

    asyncio.run(main())


def test_who_would_wait_for_too_long_is_told_at_once(clock: Clock) -> None:
    async def main() -> None:
        echo = Echo(0.05)
        with ThreadPoolExecutor(max_workers=1) as worker:
            queue = Batcher(echo, FREE, worker, Limits(compute_rows=1, inline_rows=1, queue_seconds=0.5))
            queue._size.note(1, 0.05)
            taken = [queue.submit(waiting(k)) for k in range(10)]
            with pytest.raises(UnavailableError, match=r"about 0\.5 s"):
                queue.submit(waiting(10))
            with pytest.raises(UnavailableError):  # for a newcomer it is less, but his client is in a hurry
                queue.submit(waiting(99, caller="bob", deadline=clock.now + 0.01))
            assert (await queue.submit(waiting(98, caller="bob"))).code == ""
            assert {reply.code for reply in await asyncio.gather(*taken)} == {""}

    asyncio.run(main())


def test_a_locked_database_does_not_stop_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may hold the lock for seconds; what the loop has to say to others must not wait for that."""
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", PATIENT_SECONDS)  # so whoever stands still for it is seen

    async def main() -> None:
        book = BudgetBook(tmp_path)
        echo = Echo()
        with ThreadPoolExecutor(max_workers=2) as worker:
            queue = Batcher(echo, ModelBudget("m", 100, "ever", book), worker, Limits())
            assert (await queue.submit(waiting(0))).code == ""
            with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as other:
                other.execute("BEGIN IMMEDIATE")
                start = time.monotonic()
                slow = queue.submit(waiting(1))
                for _ in range(30):
                    await asyncio.sleep(0.01)
                assert not slow.done()
                assert time.monotonic() - start < PATIENT_SECONDS / 2
                other.execute("ROLLBACK")
            assert (await slow).code == ""
            other.close()
        assert book.remaining("m", "alice", "ever", 100) == 98
        book.close()

    asyncio.run(main())


def test_places_between_batches_are_shared_out_and_turns_go_to_who_came_first() -> None:
    async def main() -> None:
        turns = Turns(8)
        greedy = [turns.join("greedy") for _ in range(4)]
        with pytest.raises(UnavailableError, match="4 of your requests for evidence"):
            turns.join("greedy")
        others = [turns.join(name) for name in ("b", "b", "c", "d")]
        with pytest.raises(UnavailableError, match="8 requests for evidence"):
            turns.join("e")
        greedy[1].cancel()
        assert turns.leave(greedy[2])
        for turn in (greedy[0], greedy[3], *others):
            assert not turn.done()
            assert turns.give()
            assert turn.done()
        assert not turns.give()
        assert not turns.leave(greedy[0])
        assert len(turns) == 0

    asyncio.run(main())
