"""Batches over HTTP, with a real model made slow."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
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
from garrison.limits import Limits
from garrison.protocol.messages import Ask, Reply
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.server.root import assemble_enclaves, background


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
