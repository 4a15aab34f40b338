"""Batches form by themselves, the queue is bounded, and the loop goes on answering while a model computes."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.models import images
from tests.serving import Bundles, Served

from garrison.attest.evidence import Evidence
from garrison.config import Config, ServerConfig
from garrison.enclave.host import Enclave, Launch, ServiceCard, launch
from garrison.errors import UnavailableError
from garrison.limits import Limits
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.server.batching import Batcher
from garrison.server.budgets import FILE_NAME, BudgetBook
from garrison.server.model_budget import Left, ModelBudget
from garrison.server.root import assemble_enclaves, background
from garrison.server.waiting import NEVER, Waiting

FREE = ModelBudget("m", 0, "", None)


class Echo:
    """Answers each ask with its own body and notes the batches it got."""

    def __init__(self, seconds: float = 0.0, *, broken: bool = False) -> None:
        self.batches: list[list[bytes]] = []
        self.threads: list[int] = []
        self.seconds = seconds
        self.broken = broken

    def __call__(self, asks: Sequence[Ask]) -> list[Reply]:
        self.batches.append([ask.body for ask in asks])
        self.threads.append(threading.get_ident())
        time.sleep(self.seconds)
        if self.broken:
            raise RuntimeError("the model broke")
        return [Reply("", "", ask.body, -1, b"", Outcome("ok", 1)) for ask in asks]


@contextmanager
def batcher(call: Echo, **limits: float) -> Iterator[Batcher]:
    with ThreadPoolExecutor(max_workers=1) as worker:
        queue = Batcher(call, FREE, worker, Limits(**limits))  # type: ignore[arg-type]
        for rows in (1, 2, 4, 8, 16):  # it has learned already that batches pay
            queue._size.note(rows, call.seconds or 1e-4)
        yield queue


def waiting(k: int, rows: float = 1.0, caller: str = "alice", deadline: float = NEVER) -> Waiting:
    return Waiting(caller, str(k).encode(), -1, "", rows, deadline=deadline)


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
            asides = [queue.between(lambda: step("aside")) for _ in range(6)]
            batches = [queue.submit(waiting(k, 2.0)) for k in range(6)]
            await asyncio.gather(*asides, *batches)
        assert sorted(done) == ["aside"] * 6 + ["batch"] * 6
        longest = max(len(run) for run in "".join(name[0] for name in done).split("b"))
        assert longest <= 2

    asyncio.run(main())


def test_who_fails_or_goes_between_batches_stops_nobody() -> None:
    async def main() -> None:
        def broken() -> None:
            raise RuntimeError("no")

        with batcher(Echo(0.01), inline_rows=1) as queue:
            gone = asyncio.ensure_future(queue.between(lambda: time.sleep(0.05)))
            never = asyncio.ensure_future(queue.between(lambda: None))
            await asyncio.sleep(0.02)
            gone.cancel()
            never.cancel()
            with pytest.raises(RuntimeError):
                await queue.between(broken)
            assert (await queue.submit(waiting(1))).body == b"1"
            assert await queue.between(lambda: 7) == 7

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
        echo = Echo(0.2)
        with batcher(echo, inline_rows=10) as queue:
            slow = queue.submit(waiting(0, 11.0))
            ticks = 0
            while not slow.done():
                await asyncio.sleep(0.01)
                ticks += 1
            assert ticks >= 5
            assert echo.threads[0] != threading.get_ident()
            # It is known now that rows of this model are slow, so a small batch goes to the worker too.
            await queue.submit(waiting(1, 1.0))
            assert echo.threads[1] != threading.get_ident()

    asyncio.run(main())


def test_what_comes_while_the_model_computes_forms_the_next_batch() -> None:
    async def main() -> None:
        echo = Echo(0.1)
        with batcher(echo, inline_rows=1) as queue:
            first = queue.submit(waiting(0, 2.0))
            await asyncio.sleep(0.02)
            assert queue.busy
            later = []
            for k in range(1, 6):
                later.append(queue.submit(waiting(k)))
                await asyncio.sleep(0.005)
            await asyncio.gather(first, *later)
            assert [len(batch) for batch in echo.batches] == [1, 5]
            assert not queue.busy

    asyncio.run(main())


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
        echo = Echo(0.05)
        with batcher(echo, inline_rows=1) as queue:
            first = queue.submit(waiting(0, 2.0))
            await asyncio.sleep(0.01)
            futures = [queue.submit(waiting(k)) for k in range(1, 4)]
            futures[1].cancel()
            await asyncio.gather(first, futures[0], futures[2])
            assert echo.batches == [[b"0"], [b"1", b"3"]]

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
        echo = Echo(0.02)
        with batcher(echo, compute_rows=8, queue_requests=20_000, queue_seconds=1e6) as queue:
            greedy = [queue.submit(waiting(k)) for k in range(10_000)]
            await asyncio.sleep(0.03)
            begun = len(echo.batches)
            assert (await queue.submit(waiting(-1, caller="bob"))).body == b"-1"
            assert [b"-1" in batch for batch in echo.batches].index(True) <= begun
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


def test_whose_deadline_passes_is_told_so_and_neither_computed_nor_charged() -> None:
    async def main() -> None:
        echo = Echo(0.2)
        with batcher(echo, inline_rows=1) as queue:
            first = queue.submit(waiting(0, 2.0))
            await asyncio.sleep(0.02)
            late = queue.submit(waiting(1, deadline=time.monotonic() + 0.05))
            good = queue.submit(waiting(2, deadline=time.monotonic() + 5.0))
            await asyncio.sleep(0.1)
            queue.sweep()
            assert late.done()  # while the model still computes
            assert not first.done()
            assert (late.result().code, late.result().outcome.rows) == ("unavailable", 0)
            assert [(await reply).body for reply in (first, good)] == [b"0", b"2"]
            assert echo.batches == [[b"0"], [b"2"]]
            unswept = queue.submit(waiting(3, 2.0)), queue.submit(waiting(4, deadline=time.monotonic() + 0.1))
            assert [reply.code for reply in await asyncio.gather(*unswept)] == ["", ""]  # nobody waits: it is in time
            with pytest.raises(UnavailableError):
                queue.submit(waiting(5, deadline=time.monotonic() - 1.0))

    asyncio.run(main())


def test_who_would_wait_for_too_long_is_told_at_once() -> None:
    async def main() -> None:
        echo = Echo(0.05)
        with ThreadPoolExecutor(max_workers=1) as worker:
            queue = Batcher(echo, FREE, worker, Limits(compute_rows=1, inline_rows=1, queue_seconds=0.5))
            queue._size.note(1, 0.05)
            taken = [queue.submit(waiting(k)) for k in range(9)]
            with pytest.raises(UnavailableError, match=r"about 0\.5 s"):
                [queue.submit(waiting(k)) for k in range(3)]
            with pytest.raises(UnavailableError):  # for a newcomer it is less, but his client is in a hurry
                queue.submit(waiting(99, caller="bob", deadline=time.monotonic() + 0.01))
            assert (await queue.submit(waiting(98, caller="bob"))).code == ""
            assert {reply.code for reply in await asyncio.gather(*taken)} <= {"", "unavailable"}

    asyncio.run(main())


def test_a_locked_database_does_not_stop_the_loop(tmp_path: Path) -> None:
    """Another process may hold the lock for seconds; what the loop has to say to others must not wait for that."""

    async def main() -> None:
        book = BudgetBook(tmp_path)
        echo = Echo()
        with ThreadPoolExecutor(max_workers=2) as worker:
            queue = Batcher(echo, ModelBudget("m", 100, "ever", book), worker, Limits())
            assert (await queue.submit(waiting(0))).code == ""
            with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as other:
                other.execute("BEGIN IMMEDIATE")
                slow = queue.submit(waiting(1))
                longest = 0.0
                for _ in range(30):
                    start = time.monotonic()
                    await asyncio.sleep(0.01)
                    longest = max(longest, time.monotonic() - start)
                assert not slow.done()
                assert longest < 0.2, longest
                other.execute("ROLLBACK")
            assert (await slow).code == ""
            other.close()
        assert book.remaining("m", "alice", "ever", 100) == 98
        book.close()

    asyncio.run(main())


class Elsewhere:
    """Computes on a thread of its own, as an enclave's process does."""

    def __init__(self, echo: Echo) -> None:
        self.echo = echo
        self.waited: list[bool] = []

    def begin(self, asks: Sequence[Ask]) -> Elsewhere:
        self._found: list[Reply] = []
        self._thread = threading.Thread(target=lambda: self._found.extend(self.echo(asks)))
        self._thread.start()
        return self

    def wait(self, seconds: float) -> bool:
        self._thread.join(seconds)
        self.waited.append(not self._thread.is_alive())
        return self.waited[-1]

    def result(self) -> list[Reply]:
        self._thread.join()
        return self._found


def test_an_enclave_that_is_slow_without_warning_does_not_stop_the_loop() -> None:
    async def main() -> None:
        place = Elsewhere(Echo())
        with ThreadPoolExecutor(max_workers=1) as worker:
            queue = Batcher(place.echo, FREE, worker, Limits(), place.begin)
            for k in range(3):
                assert (await queue.submit(waiting(k))).code == ""
            assert place.waited == [True] * 3
            place.echo.seconds = 0.3
            slow, longest = queue.submit(waiting(4)), 0.0
            while not slow.done():
                start = time.monotonic()
                await asyncio.sleep(0.001)
                longest = max(longest, time.monotonic() - start)
            assert (await slow).body == b"4"
            assert longest < 0.2, longest
            assert place.waited[3:] == [False]

    asyncio.run(main())


# --- over HTTP, with a real model made slow ---------------------------------------------------------------------------


class Slow:
    """A real enclave that takes its time."""

    ready = True

    def __init__(self, enclave: Enclave, seconds: float) -> None:
        self._enclave = enclave
        self._seconds = seconds
        self.asks = 0

    @property
    def card(self) -> ServiceCard:
        return self._enclave.card

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        self.asks += len(asks)
        time.sleep(self._seconds)
        return self._enclave.call(asks)

    def evidence(self, nonce: bytes) -> Evidence:
        return self._enclave.evidence(nonce)

    def stop(self) -> None:
        self._enclave.stop()


@contextmanager
def slow_server(bundles: Bundles, state: Path, seconds: float, limits: Limits) -> Iterator[tuple[Served, Slow]]:
    sealed = bundles.sealed["mlp-1"]
    slow = Slow(launch("none", Launch(sealed.path, [sealed.owner.public], sealed.key, {}, limits)), seconds)
    config = Config(server=ServerConfig(port=0, state=str(state)), limits=limits)
    assembly = assemble_enclaves(config, [slow])
    with background(assembly) as url:
        yield Served(url, assembly), slow


def test_a_full_queue_is_503_with_retry_after_and_health_answers_meanwhile(bundles: Bundles, tmp_path: Path) -> None:
    async def main(url: str) -> None:
        body, length = encode_request({"image": images(40)})
        headers = {"inference-header-content-length": str(length)}
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

            async def post() -> httpx.Response:
                return await client.post("/v2/models/mlp/infer", content=body, headers=headers)

            first = asyncio.create_task(post())
            await asyncio.sleep(0.2)
            rest = [asyncio.create_task(post()) for _ in range(10)]
            start = time.perf_counter()
            assert (await client.get("/v2/health/ready")).status_code == 200
            assert time.perf_counter() - start < 0.5
            answers = await asyncio.gather(first, *rest)
        full = [a for a in answers if a.status_code == 503]
        assert len(full) == 8  # of ten that wait two are taken: as many as there are places left
        assert {(a.json()["code"], a.headers["retry-after"]) for a in full} == {("unavailable", "1")}
        good = [a for a in answers if a.status_code == 200]
        probabilities = [
            decode_response(a.content, int(a.headers["inference-header-content-length"])).outputs["probabilities"]
            for a in good
        ]
        assert all(np.allclose(p, probabilities[0], atol=1e-6) for p in probabilities)

    limits = Limits(queue_requests=4, inline_rows=32)
    with slow_server(bundles, tmp_path, 0.7, limits) as (served, _):
        asyncio.run(main(served.url))
        assert served.infer().status_code == 200


def test_nothing_is_computed_for_clients_that_have_gone(bundles: Bundles, tmp_path: Path) -> None:
    with slow_server(bundles, tmp_path, 1.5, Limits(inline_rows=4)) as (served, slow):

        def impatient(rows: int) -> None:
            body, length = encode_request({"image": images(rows)})
            headers = {"inference-header-content-length": str(length)}
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{served.url}/v2/models/mlp/infer", content=body, headers=headers, timeout=0.25)

        impatient(8)  # is being computed when its client goes
        impatient(8)  # waits when its client goes
        assert served.infer(images(8)).status_code == 200
        assert slow.asks == 2


def test_a_client_says_how_long_it_waits_and_costs_nothing_after_that(bundles: Bundles, tmp_path: Path) -> None:
    with slow_server(bundles, tmp_path, 0.6, Limits(inline_rows=4)) as (served, slow):
        busy = threading.Thread(target=served.infer, args=(images(8),))
        busy.start()
        time.sleep(0.1)
        start = time.perf_counter()
        hurried = served.infer(images(8), **{"request-timeout": "0.2"})
        assert (hurried.status_code, hurried.json()["code"]) == (503, "unavailable")
        assert hurried.headers["retry-after"] == "1"
        assert time.perf_counter() - start < 1.5
        patient = served.infer(images(8), **{"request-timeout": "20"})
        assert patient.status_code == 200
        busy.join()
        assert slow.asks == 2
        for nonsense in ("", "-1", "soon", "1e3", "0x1", "1 s", "nan"):
            told = served.infer(images(1), **{"request-timeout": nonsense})
            assert (told.status_code, told.json()["code"]) == (400, "request.malformed"), nonsense
