"""Batches form by themselves, the queue is bounded, and the loop goes on answering while a model computes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
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
from garrison.server.batching import Batcher, Waiting
from garrison.server.budgets import ModelBudget
from garrison.server.root import assemble_enclaves, background

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
def batcher(call: Echo, **limits: int) -> Iterator[Batcher]:
    with ThreadPoolExecutor(max_workers=1) as worker:
        yield Batcher(call, FREE, worker, Limits(**limits))


def waiting(k: int, rows: float = 1.0) -> Waiting:
    return Waiting("alice", str(k).encode(), -1, "", rows)


def test_the_requests_of_one_turn_form_one_batch_and_each_gets_its_own_answer() -> None:
    async def main() -> None:
        echo = Echo()
        with batcher(echo) as queue:
            replies = await asyncio.gather(*(queue.submit(waiting(k)) for k in range(20)))
            assert [reply.body for reply in replies] == [str(k).encode() for k in range(20)]
            assert [len(batch) for batch in echo.batches] == [20]
            assert echo.threads == [threading.get_ident()]

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
            taken = [queue.submit(waiting(k, 2.0)) for k in range(3)]
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

        def remaining(self, caller: str) -> int:
            return 10

        def charge(self, wants: Sequence[tuple[str, int]]) -> list[bool]:
            return [k % 2 == 0 for k in range(len(wants))]

    async def main() -> None:
        with ThreadPoolExecutor(max_workers=1) as worker:
            queue = Batcher(Echo(), Elsewhere("m", 10, "ever", None), worker, Limits())
            replies = await asyncio.gather(*(queue.submit(waiting(k)) for k in range(4)))
        assert [reply.code for reply in replies] == ["", "request.budget_exhausted"] * 2
        assert [reply.body for reply in replies] == [b"0", b"", b"2", b""]

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
        assert len(full) == 6
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
