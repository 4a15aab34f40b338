"""Batches form by themselves, and the loop goes on answering while a model computes."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from tests.server.batches import FREE, Echo, batcher, waiting
from tests.stalls import PATIENT_SECONDS

from garrison.errors import UnavailableError
from garrison.limits import Limits
from garrison.protocol.messages import Ask, Reply
from garrison.server import arrival, batching
from garrison.server.batching import INLINE_SECONDS, LOOKS, Batcher


def test_the_requests_of_one_turn_form_one_batch_and_each_gets_its_own_answer() -> None:
    async def main() -> None:
        echo = Echo()
        with batcher(echo) as queue:
            replies = await asyncio.gather(*(queue.submit(waiting(k)) for k in range(20)))
            assert [reply.body for reply in replies] == [str(k).encode() for k in range(20)]
            assert [len(batch) for batch in echo.batches] == [20]
            assert echo.threads == [threading.get_ident()]

    asyncio.run(main())


def test_whom_nobody_can_join_is_answered_before_the_turn_ends() -> None:
    async def main() -> None:
        echo = Echo()
        with batcher(echo) as queue:
            await queue.submit(waiting(0))  # what the model takes is known now
            future = queue.submit(waiting(1), alone=True)
            assert future.done()
            assert future.result().body == b"1"
            assert not queue.submit(waiting(2)).done()  # who may be joined waits for the turn's end

    asyncio.run(main())


def test_who_says_to_be_alone_and_is_not_joins_the_others() -> None:
    async def main() -> None:
        echo = Echo()
        with batcher(echo) as queue:
            first = queue.submit(waiting(0))
            second = queue.submit(waiting(1), alone=True)
            assert not second.done()
            assert [(await reply).body for reply in (first, second)] == [b"0", b"1"]
            # Two were answered just now, so another may follow whoever comes first.
            third, fourth = queue.submit(waiting(2), alone=True), queue.submit(waiting(3), alone=True)
            assert not third.done()
            assert [(await reply).body for reply in (third, fourth)] == [b"2", b"3"]
            assert [len(batch) for batch in echo.batches] == [2, 2]

    asyncio.run(main())


def test_who_is_alone_with_a_slow_model_leaves_the_loop_free() -> None:
    async def main() -> None:
        with batcher(Echo(), inline_rows=1) as queue:
            await queue.submit(waiting(0))
            future = queue.submit(waiting(1, rows=2.0), alone=True)
            assert not future.done()
            assert queue.busy
            assert (await future).body == b"1"

    asyncio.run(main())


def test_what_runs_between_batches_runs_alone_and_takes_turns_with_them() -> None:
    async def main() -> None:
        running: list[str] = []
        done: list[str] = []

        def step(name: str) -> str:
            running.append(name)
            assert len(running) == 1
            time.sleep(0.002)
            running.pop()
            done.append(name)
            return name

        class Counted(Echo):
            def __call__(self, asks: Sequence[Ask]) -> list[Reply]:
                step("batch")
                return super().__call__(asks)

        with batcher(Counted(), compute_rows=1, inline_rows=1) as queue:
            asides = [queue.between(lambda: step("aside"), "a") for _ in range(6)]
            batches = [queue.submit(waiting(k, 2.0)) for k in range(6)]
            await asyncio.gather(*asides, *batches)
        assert sorted(done) == ["aside"] * 6 + ["batch"] * 6
        longest = max(len(run) for run in "".join(name[0] for name in done).split("b"))
        assert longest <= 2

    asyncio.run(main())


def test_who_fails_or_goes_between_batches_stops_nobody() -> None:
    async def main() -> None:
        began, go = threading.Event(), threading.Event()

        def held() -> None:
            began.set()
            assert go.wait(PATIENT_SECONDS)

        def broken() -> None:
            raise RuntimeError("no")

        with batcher(Echo(), inline_rows=1) as queue:
            gone = asyncio.ensure_future(queue.between(held, "a"))
            never = asyncio.ensure_future(queue.between(lambda: None, "a"))
            assert await asyncio.to_thread(began.wait, PATIENT_SECONDS)
            gone.cancel()
            never.cancel()
            failing = asyncio.ensure_future(queue.between(broken, "a"))
            for _ in range(10):
                await asyncio.sleep(0)
            assert gone.cancelled()
            assert not failing.done()  # the thread is not free
            go.set()
            with pytest.raises(RuntimeError):
                await failing
            assert (await queue.submit(waiting(1))).body == b"1"
            assert await queue.between(lambda: 7, "a") == 7

    asyncio.run(main())


def test_an_enclave_that_is_away_is_told_as_such_and_not_as_our_fault() -> None:
    def away(asks: Sequence[Ask]) -> list[Reply]:
        raise UnavailableError("being started anew")

    async def main() -> None:
        with ThreadPoolExecutor(max_workers=1) as worker:
            reply = await Batcher(away, FREE, worker, Limits()).submit(waiting(1))
        assert (reply.code, reply.detail, reply.outcome.rows) == ("unavailable", "being started anew", 0)

    asyncio.run(main())


def test_a_batch_is_as_long_as_one_run_of_the_runtime() -> None:
    async def main() -> None:
        echo = Echo()
        with batcher(echo, compute_rows=8, inline_rows=8) as queue:
            await asyncio.gather(*(queue.submit(waiting(k, 3.0)) for k in range(5)), queue.submit(waiting(5, 100.0)))
            assert [len(batch) for batch in echo.batches] == [2, 2, 1, 1]

    asyncio.run(main())


def test_large_and_slow_batches_leave_the_loop_free() -> None:
    async def main() -> None:
        echo = Echo(0.2, held=True)
        with batcher(echo, inline_rows=10) as queue:
            slow = queue.submit(waiting(0, 11.0))
            await echo.computing()
            for _ in range(5):
                await asyncio.sleep(0.001)
            assert not slow.done()
            echo.go.set()
            await slow
            assert echo.threads[0] != threading.get_ident()
            # It is known now that rows of this model are slow, so a small batch goes to the worker too.
            await queue.submit(waiting(1, 1.0))
            assert echo.threads[1] != threading.get_ident()

    asyncio.run(main())


def test_what_comes_while_the_model_computes_forms_the_next_batch() -> None:
    async def main() -> None:
        echo = Echo(held=True)
        with batcher(echo, inline_rows=1) as queue:
            first = queue.submit(waiting(0, 2.0))
            await echo.computing()
            assert queue.busy
            later = []
            for k in range(1, 6):
                later.append(queue.submit(waiting(k)))
                await asyncio.sleep(0.005)
            echo.go.set()
            await asyncio.gather(first, *later)
            assert [len(batch) for batch in echo.batches] == [1, 5]
            assert not queue.busy

    asyncio.run(main())


def test_a_model_that_breaks_answers_everybody_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        echo = Echo(broken=True)
        with batcher(echo, inline_rows=5) as queue:
            for rows in (1.0, 9.0):  # on the loop's thread and on the worker's
                replies = await asyncio.gather(*(queue.submit(waiting(k, rows)) for k in range(3)))
                assert {reply.code for reply in replies} == {"internal"}
                assert {reply.body for reply in replies} == {b""}
            echo.broken = False
            assert (await queue.submit(waiting(7))).body == b"7"

    asyncio.run(main())
    assert "could not be answered or charged" in caplog.text


@pytest.mark.parametrize(("seconds", "looks"), [(1e-4, True), (1.0, False)], ids=["cheap", "dear"])
def test_nobody_is_looked_out_for_where_more_rows_do_not_pay(seconds: float, looks: bool) -> None:
    async def main() -> None:
        with batcher(Echo()) as queue:
            for rows in (1, 2, 4, 8, 16) * 2:
                queue._size._by_size[rows] = seconds
                queue._size.note(rows, seconds * rows)
            queue._expected = 8
            replies = [queue.submit(waiting(k)) for k in range(2)]
            assert queue._still_coming() == looks
            await asyncio.gather(*replies)

    asyncio.run(main())


@pytest.mark.parametrize(("announced", "together"), [(True, True), (False, False)], ids=["head came", "no head"])
def test_a_batch_waits_for_whose_head_has_come(
    monkeypatch: pytest.MonkeyPatch, announced: bool, together: bool
) -> None:
    monkeypatch.setattr(batching, "LOOK_SECONDS", PATIENT_SECONDS)

    async def main() -> None:
        echo = Echo()
        with batcher(echo) as queue:
            queue._expected = 8
            first = queue.submit(waiting(0))
            await turns(LOOKS)
            if announced:
                queue.announce()
            await turns(LOOKS)
            second = queue.submit(waiting(1))
            await asyncio.gather(first, second)
            assert [len(batch) for batch in echo.batches] == ([2] if together else [1, 1])

    asyncio.run(main())


@pytest.mark.parametrize(("seconds", "waits"), [(PATIENT_SECONDS, True), (0.0, False)], ids=["in time", "too long"])
def test_heads_without_bodies_hold_a_batch_back_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float, waits: bool
) -> None:
    monkeypatch.setattr(batching, "LOOK_SECONDS", seconds)

    async def main() -> None:
        with batcher(Echo()) as queue:
            queue._expected = 8
            reply = queue.submit(waiting(0))
            for _ in range(20):
                queue.announce()
                await turns(1)
            assert reply.done() != waits
            assert (await reply).body == b"0"

    asyncio.run(main())


async def turns(count: int) -> None:
    """So many turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


class Elsewhere:
    """Computes on a thread of its own, as an enclave's process does. Where nobody holds the model, it is done before it is asked whether it is."""

    def __init__(self, echo: Echo) -> None:
        self.echo = echo
        self.waited: list[tuple[float, bool]] = []
        self.cheap: list[bool] = []
        self.read_by: list[int] = []
        self.whole = True
        self._done = os.eventfd(0)

    def begin(self, asks: Sequence[Ask], *, cheap: bool) -> Elsewhere:
        self._found: list[Reply] = []
        self._thread = threading.Thread(target=self._compute, args=(asks,))
        self._thread.start()
        self.cheap.append(cheap)
        if self.echo.go.is_set():
            self._thread.join()
        return self

    def _compute(self, asks: Sequence[Ask]) -> None:
        self._found += self.echo(asks)
        os.eventfd_write(self._done, 1)

    def wait(self, seconds: float) -> bool:
        self._thread.join(seconds)
        self.waited.append((seconds, not self._thread.is_alive()))
        return self.waited[-1][1]

    def fileno(self) -> int:
        return self._done

    def is_whole(self) -> bool:
        return self.whole

    def result(self) -> list[Reply]:
        self._thread.join()
        os.eventfd_read(self._done)
        self.read_by.append(threading.get_ident())
        return self._found

    def close(self) -> None:
        os.close(self._done)


class NoThread(Executor):
    def submit(self, *_: object, **__: object) -> Future[Any]:
        raise AssertionError("no thread is needed")


def test_an_enclave_that_is_slow_without_warning_does_not_stop_the_loop() -> None:
    async def main() -> None:
        with closing(Elsewhere(Echo())) as place:
            queue = Batcher(place.echo, FREE, NoThread(), Limits(), place.begin)
            assert (await queue.submit(waiting(0))).code == ""
            queue._size.note(1, INLINE_SECONDS / 10)  # whatever the first took here
            for k in range(1, 3):
                assert (await queue.submit(waiting(k))).code == ""
            assert place.waited == [(INLINE_SECONDS, True)] * 3
            place.echo.go.clear()
            slow = queue.submit(waiting(4))
            while len(place.waited) < 4:
                await asyncio.sleep(0)
            for _ in range(10):  # the loop is free
                await asyncio.sleep(0.001)
            assert not slow.done()
            assert place.waited[3:] == [(INLINE_SECONDS, False)]
            place.echo.go.set()
            assert (await slow).body == b"4"
            assert len(place.waited) == 4

    asyncio.run(main())


def test_an_enclave_that_is_known_to_be_slow_is_awaited_as_clients_are() -> None:
    async def main() -> None:
        with closing(Elsewhere(Echo(held=True))) as place:
            queue = Batcher(place.echo, FREE, NoThread(), Limits(), place.begin)
            queue._size.note(1, 100 * INLINE_SECONDS)
            slow = [queue.submit(waiting(k)) for k in range(2)]
            await place.echo.computing()
            assert queue.busy
            assert not place.waited
            place.echo.go.set()
            assert [(await reply).body for reply in slow] == [b"0", b"1"]
            assert (await queue.submit(waiting(2))).body == b"2"
            assert not place.cheap[0]
            assert set(place.read_by) == {threading.get_ident()}

    asyncio.run(main())


def test_an_enclave_that_takes_very_long_is_left_to_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with closing(Elsewhere(Echo(held=True))) as place, ThreadPoolExecutor(max_workers=1) as worker:
            queue = Batcher(place.echo, FREE, worker, Limits(), place.begin)
            queue._size.note(1, 100 * INLINE_SECONDS)
            monkeypatch.setattr(arrival, "THREAD_SECONDS", 0.0)
            slow = queue.submit(waiting(0))
            await place.echo.computing()
            for _ in range(10):  # the loop is free
                await asyncio.sleep(0.001)
            assert not slow.done()
            place.echo.go.set()
            assert (await slow).body == b"0"
            assert threading.get_ident() not in place.read_by
            assert (await queue.submit(waiting(1))).body == b"1"

    asyncio.run(main())


def test_the_rest_of_an_answer_is_left_to_a_thread() -> None:
    async def main() -> None:
        with closing(Elsewhere(Echo())) as place, ThreadPoolExecutor(max_workers=1) as worker:
            queue = Batcher(place.echo, FREE, worker, Limits(), place.begin)
            queue._size.note(1, 100 * INLINE_SECONDS)
            place.whole = False
            assert (await queue.submit(waiting(0))).body == b"0"
            assert threading.get_ident() not in place.read_by

    asyncio.run(main())


@pytest.mark.parametrize("cheap", [True, False])
def test_where_it_cannot_be_seen_whether_an_enclave_has_answered_a_thread_asks(cheap: bool) -> None:
    """A defect there once would have left the model busy for ever."""

    class Unsure(Elsewhere):
        def is_whole(self) -> bool:
            raise ValueError("a file descriptor cannot be negative")

    async def main() -> None:
        with closing(Unsure(Echo())) as place, ThreadPoolExecutor(max_workers=1) as worker:
            queue = Batcher(place.echo, FREE, worker, Limits(), place.begin)
            if not cheap:
                queue._size.note(1, 100 * INLINE_SECONDS)
            for k in range(3):
                assert (await queue.submit(waiting(k))).body == str(k).encode()
            assert threading.get_ident() not in place.read_by
            assert not queue.busy

    asyncio.run(main())


def test_a_cheap_answer_that_is_only_begun_does_not_hold_the_loop() -> None:
    async def main() -> None:
        with closing(Elsewhere(Echo())) as place, ThreadPoolExecutor(max_workers=1) as worker:
            queue = Batcher(place.echo, FREE, worker, Limits(), place.begin)
            place.whole = False
            assert (await queue.submit(waiting(0))).body == b"0"
            assert place.cheap == [True]
            assert threading.get_ident() not in place.read_by

    asyncio.run(main())


def test_where_nothing_can_be_watched_a_thread_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    async def main() -> None:
        with closing(Elsewhere(Echo())) as place, ThreadPoolExecutor(max_workers=1) as worker:
            queue = Batcher(place.echo, FREE, worker, Limits(), place.begin)
            queue._size.note(1, 100 * INLINE_SECONDS)
            monkeypatch.setattr(batching, "when_readable", full)
            for k in range(2):
                assert (await queue.submit(waiting(k))).body == b"%d" % k
            assert place.read_by[0] != threading.get_ident()

    asyncio.run(main())


def test_the_end_waits_for_the_answer_that_is_awaited_and_begins_nothing_more() -> None:
    async def main() -> None:
        with closing(Elsewhere(Echo(held=True))) as place:
            queue = Batcher(place.echo, FREE, NoThread(), Limits(), place.begin)
            queue._size.note(1, 100 * INLINE_SECONDS)
            awaited = queue.submit(waiting(0))
            await place.echo.computing()
            after = queue.submit(waiting(1))
            ending = asyncio.ensure_future(queue.close())
            for _ in range(10):
                await asyncio.sleep(0.001)
            assert not ending.done()
            place.echo.go.set()
            await ending
            assert (await awaited).body == b"0"
            for _ in range(10):
                await asyncio.sleep(0.001)
            assert not after.done()
            assert len(place.read_by) == 1

    asyncio.run(main())


def test_an_enclave_that_dies_meanwhile_is_told_as_such() -> None:
    class Dying(Elsewhere):
        def result(self) -> list[Reply]:
            super().result()
            raise UnavailableError("being started anew")

    async def main() -> None:
        with closing(Dying(Echo())) as place:
            queue = Batcher(place.echo, FREE, NoThread(), Limits(), place.begin)
            queue._size.note(1, 100 * INLINE_SECONDS)
            for k in range(2):
                assert (await queue.submit(waiting(k))).code == "unavailable"

    asyncio.run(main())
