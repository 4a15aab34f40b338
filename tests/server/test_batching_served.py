"""Batches over HTTP, with a real model that computes when it is let go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from tests.models import images
from tests.serving import Bundles, Served
from tests.stalls import PATIENT_SECONDS

from garrison.attest.evidence import Evidence
from garrison.config import Config, ServerConfig
from garrison.enclave.host import Enclave, Launch, ServiceCard, launch
from garrison.limits import Limits
from garrison.protocol.messages import Ask, Reply
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.server.root import assemble_enclaves, background


class Held:
    """A real enclave that computes its first batch when it is let go.

    Attributes:
        asks: requests that it got.
        began, go: it has got a batch; it may compute.
    """

    ready = True

    def __init__(self, enclave: Enclave) -> None:
        self._enclave = enclave
        self.asks = 0
        self.began, self.go = threading.Event(), threading.Event()

    @property
    def card(self) -> ServiceCard:
        return self._enclave.card

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        self.asks += len(asks)
        self.began.set()
        assert self.go.wait(PATIENT_SECONDS)
        return self._enclave.call(asks)

    def evidence(self, nonce: bytes) -> Evidence:
        return self._enclave.evidence(nonce)

    def stop(self) -> None:
        self._enclave.stop()


@contextmanager
def held_server(bundles: Bundles, state: Path, **more: float) -> Iterator[tuple[Served, Held]]:
    sealed = bundles.sealed["mlp-1"]
    limits = Limits(queue_seconds=PATIENT_SECONDS, **more)  # type: ignore[arg-type]
    held = Held(launch("none", Launch(sealed.path, [sealed.owner.public], sealed.key, {}, limits)))
    config = Config(server=ServerConfig(port=0, state=str(state)), limits=limits)
    assembly = assemble_enclaves(config, [held])
    with background(assembly) as url:
        try:
            yield Served(url, assembly), held
        finally:
            held.go.set()


class Asking:
    """Requests of some rows over connections of their own, from an event loop."""

    def __init__(self, client: httpx.AsyncClient, rows: int) -> None:
        self._client = client
        self._body, length = encode_request({"image": images(rows)})
        self._headers = {"inference-header-content-length": str(length)}

    def begin(self) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self._client.post("/v2/models/mlp/infer", content=self._body, headers=self._headers))


async def until(good: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENT_SECONDS):
        while not good():
            await asyncio.sleep(0.01)


def test_a_full_queue_is_503_with_retry_after_and_health_answers_meanwhile(bundles: Bundles, tmp_path: Path) -> None:
    async def main(url: str, held: Held) -> None:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENT_SECONDS, limits=limits) as client:
            asking = Asking(client, 40)
            tasks = [asking.begin()]
            await until(held.began.is_set)
            tasks += [asking.begin() for _ in range(10)]
            # Of ten that wait two are taken: as many as there are places left.
            await until(lambda: sum(task.done() for task in tasks) == 8)
            assert (await client.get("/v2/health/ready")).status_code == 200
            assert sum(task.done() for task in tasks) == 8
            held.go.set()
            answers = await asyncio.gather(*tasks)
        full = [a for a in answers if a.status_code == 503]
        assert len(full) == 8
        assert {(a.json()["code"], a.headers["retry-after"]) for a in full} == {("unavailable", "1")}
        good = [a for a in answers if a.status_code == 200]
        probabilities = [
            decode_response(a.content, int(a.headers["inference-header-content-length"])).outputs["probabilities"]
            for a in good
        ]
        assert all(np.allclose(p, probabilities[0], atol=1e-6) for p in probabilities)

    with held_server(bundles, tmp_path, queue_requests=4, inline_rows=32) as (served, held):
        asyncio.run(main(served.url, held))
        assert served.infer().status_code == 200


def test_nothing_is_computed_for_clients_that_have_gone(bundles: Bundles, tmp_path: Path) -> None:
    async def main(served: Served, held: Held) -> None:
        queue = served.assembly.hosting.default("mlp").batcher
        async with httpx.AsyncClient(base_url=served.url, timeout=PATIENT_SECONDS) as client:
            asking = Asking(client, 8)
            computed = asking.begin()  # is being computed when its client goes
            await until(held.began.is_set)
            waits = asking.begin()
            await until(lambda: queue.queued == 1)
            stays = asking.begin()
            await until(lambda: queue.queued == 2)
            for task in (computed, waits):
                task.cancel()
            await until(lambda: queue.queued == 1)
            held.go.set()
            assert (await stays).status_code == 200
        assert held.asks == 2

    with held_server(bundles, tmp_path, inline_rows=4) as (served, held):
        asyncio.run(main(served, held))


def test_a_client_says_how_long_it_waits_and_costs_nothing_after_that(bundles: Bundles, tmp_path: Path) -> None:
    with held_server(bundles, tmp_path, inline_rows=4) as (served, held):
        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(served.infer, images(8))
            assert held.began.wait(PATIENT_SECONDS)
            hurried = served.infer(images(8), **{"request-timeout": "0.2"})  # told while the model still computes
            held.go.set()
            assert busy.result().status_code == 200
        assert (hurried.status_code, hurried.json()["code"]) == (503, "unavailable")
        assert hurried.headers["retry-after"] == "1"
        patient = served.infer(images(8), **{"request-timeout": "20"})
        assert patient.status_code == 200
        assert held.asks == 2
        for nonsense in ("", "-1", "soon", "1e3", "0x1", "1 s", "nan"):
            told = served.infer(images(1), **{"request-timeout": nonsense})
            assert (told.status_code, told.json()["code"]) == (400, "request.malformed"), nonsense
