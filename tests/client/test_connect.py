"""`garrison connect`: unmodified clients get a private connection, and nothing else gets anywhere."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from tests.models import BOUNDS, CLASSES, RELEASE, SCORE, Sealed, images, misinform, seal_mlp
from tests.serving import Served
from tests.simulated import Simulated, serve_simulated
from tests.stalls import PATIENT_SECONDS, again_after_a_stall, wait_until

from garrison.attest.policy import Policy
from garrison.client import Client, connect_http
from garrison.client.connect import Proxy
from garrison.client.connect_http import serve_proxy
from garrison.client.connect_work import rows_of
from garrison.enclave.service import Service
from garrison.limits import Limits
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.server.auth import add_key
from garrison.types import DefenseSpec

httpclient = pytest.importorskip("tritonclient.http")
SIMULATED = Policy(allow_simulated=True)
INFER = "/v2/models/mlp/infer"


@contextmanager
def proxy(
    url: str, policy: Policy = SIMULATED, *, api_key: str | None = None, limits: Limits | None = None
) -> Iterator[str]:
    """A proxy in a thread; yields its URL."""
    started: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def on_ready(local: str) -> None:
            started.append((local, loop, stop))
            ready.set()

        inner = Proxy(policy, api_key=api_key, attempts=2)
        given = limits or Limits()
        await serve_proxy(
            url, inner, port=0, timeout_seconds=PATIENT_SECONDS, on_ready=on_ready, stop=stop, limits=given
        )

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(PATIENT_SECONDS)
    local, loop, stop = started[0]
    try:
        yield local
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENT_SECONDS)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_mlp(tmp_path_factory.mktemp("b") / "mlp", (BOUNDS, SCORE, misinform(0.6), RELEASE), require_sealed=True)


@pytest.fixture(scope="module")
def running(sealed: Sealed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Simulated]]:
    with serve_simulated(sealed, state=tmp_path_factory.mktemp("state")) as (served, (enclave,)):
        yield served, enclave


@pytest.fixture(scope="module")
def local(running: tuple[Served, Simulated]) -> Iterator[str]:
    with proxy(running[0].url) as url:
        yield url


@pytest.fixture(scope="module")
def triton(local: str) -> Iterator[Any]:
    client = httpclient.InferenceServerClient(urlsplit(local).netloc, concurrency=4)
    yield client
    client.close()


def infer_input(x: np.ndarray[Any, Any], *, binary: bool) -> Any:
    found = httpclient.InferInput("image", list(x.shape), "FP32")
    found.set_data_from_numpy(x, binary_data=binary)
    return found


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tritonclient(
    triton: Any, running: tuple[Served, Simulated], sealed: Sealed, binary_in: bool, binary_out: bool
) -> None:
    x, enclave = images(3), running[1]
    expected = Service(sealed.verified(), key=sealed.key).predict({"image": x}).outputs["probabilities"]
    outputs = [httpclient.InferRequestedOutput("probabilities", binary_data=binary_out)]
    seen = len(enclave.asks)
    result = triton.infer("mlp", [infer_input(x, binary=binary_in)], outputs=outputs, request_id="mine")
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)
    assert result.get_response()["id"] == "mine"
    assert [ask.sealed for ask in enclave.asks[seen:]] == [True]


def test_tritonclient_health_metadata_and_errors(triton: Any, running: tuple[Served, Simulated]) -> None:
    assert triton.is_server_live()
    assert triton.is_model_ready("mlp")
    assert not triton.is_model_ready("nope")
    assert triton.get_server_metadata()["name"] == "garrison"
    assert triton.get_model_metadata("mlp")["inputs"][0]["shape"] == [-1, 1, 8, 8]
    assert [entry["name"] for entry in triton.get_model_repository_index()] == ["mlp"]
    for model, x, status, says in (
        ("nope", images(1), "404", "unknown model"),
        ("mlp", images(1) + 5, "400", "outside the range"),
        ("mlp", images(1)[:, :, :4], "400", "expected shape"),
    ):
        with pytest.raises(httpclient.InferenceServerException, match=says) as caught:
            triton.infer(model, [infer_input(x, binary=True)])
        assert caught.value.status() == status
    with pytest.raises(httpclient.InferenceServerException, match="compressed"):
        triton.infer("mlp", [infer_input(images(1), binary=True)], request_compression_algorithm="gzip")


def test_tritonclient_asks_many_at_once(triton: Any) -> None:
    waiting = [triton.async_infer("mlp", [infer_input(images(k), binary=True)]) for k in range(1, 13)]
    found = [request.get_result().as_numpy("probabilities").shape for request in waiting]
    assert found == [(k, CLASSES) for k in range(1, 13)]


def test_the_control_without_the_proxy_such_a_client_is_refused(running: tuple[Served, Simulated]) -> None:
    client = httpclient.InferenceServerClient(urlsplit(running[0].url).netloc)
    with pytest.raises(httpclient.InferenceServerException, match="demands sealed requests"):
        client.infer("mlp", [infer_input(images(1), binary=True)])
    client.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("rows", [1, 2000])
def test_curl(local: str, tmp_path: Path, rows: int) -> None:
    x = images(rows)
    tensor = {"name": "image", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().round(3).tolist()}
    (tmp_path / "body.json").write_text(json.dumps({"inputs": [tensor]}))  # the longer one with Expect: 100-continue
    words = ["curl", "-sS", "-i", "--max-time", "60", "-H", "content-type: application/json"]
    words += ["--data-binary", f"@{tmp_path / 'body.json'}", local + INFER]
    said = subprocess.run(words, capture_output=True, check=True).stdout
    head, _, body = said.rpartition(b"\r\n\r\n")
    assert b"HTTP/1.1 200" in head
    assert b"garrison-attested: sim" in head
    assert json.loads(body)["outputs"][0]["shape"] == [rows, CLASSES]


def post(url: str, **headers: str) -> httpx.Response:
    body, json_bytes = encode_request({"image": images(2)})
    return httpx.post(url + INFER, content=body, headers={"inference-header-content-length": str(json_bytes)} | headers)


def test_our_own_client_finds_its_proof_through_the_proxy(local: str) -> None:
    with Client(local) as client:
        assert client.predict(images(3)).proved


def test_versions(local: str) -> None:
    body, json_bytes = encode_request({"image": images(2)})
    headers = {"inference-header-content-length": str(json_bytes)}
    good = httpx.post(f"{local}/v2/models/mlp/versions/1/infer", content=body, headers=headers)
    length = int(good.headers["inference-header-content-length"])
    assert decode_response(good.content, length).version == "1"
    assert httpx.post(f"{local}/v2/models/mlp/versions/9/infer", content=body, headers=headers).status_code == 404


def test_evidence_that_is_not_good_enough_is_told_and_nothing_is_sent(running: tuple[Served, Simulated]) -> None:
    served, enclave = running
    seen = len(enclave.asks)
    with proxy(served.url, Policy()) as url:
        response = post(url)
        assert (response.status_code, response.json()["code"]) == (502, "service.attestation")
        assert response.json()["error"].startswith(
            "nothing was sent: the evidence (sim) is not good enough: technology"
        )
        assert httpx.get(f"{url}/v2/health/live").status_code == 200
    assert len(enclave.asks) == seen


def test_a_restarted_enclave_and_one_that_is_away(sealed: Sealed, tmp_path: Path) -> None:
    with serve_simulated(sealed, state=tmp_path) as (served, (enclave,)), proxy(served.url) as url:
        assert post(url).status_code == 200
        enclave.restart()
        assert post(url).status_code == 200
    with proxy(served.url) as url:
        for response in (post(url), httpx.get(f"{url}/v2")):
            assert (response.status_code, response.json()["code"]) == (503, "unavailable")


def test_the_api_key_is_the_proxys(sealed: Sealed, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.json", "alice")
    with serve_simulated(sealed, state=tmp_path / "s", keys=str(tmp_path / "keys.json")) as (served, (enclave,)):
        with proxy(served.url, api_key=key) as url:
            assert post(url).status_code == 200
            assert post(url, authorization="Bearer gk_mallory_00").status_code == 200
            assert {ask.caller for ask in enclave.asks} == {"alice"}
        with proxy(served.url) as url:
            assert post(url).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_a_web_page_gets_nothing(local: str, headers: dict[str, str]) -> None:
    assert post(local, **headers).status_code == 400
    assert httpx.get(f"{local}/v2", headers=headers).status_code == 400
    assert httpx.get(f"{local}/v2", headers={"sec-fetch-site": "none"}).status_code == 200, (
        "control: typed in by the user"
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/etc/passwd", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/models/mlp", 405),
        ("DELETE", "/v2/models/mlp", 405),
        ("POST", "/v2/models/mlp/load", 405),
        ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/../../x", 404),
        ("GET", "/v2/%zz%00[", 404),
        ("GET", "http://other.example/v2", 404),
    ],
)
def test_nothing_else_is_handed_on(local: str, method: str, path: str, status: int) -> None:
    answer = raw(
        local, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    assert int(answer.split(b" ", 2)[1]) == status
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]


def raw(url: str, text: str | bytes) -> bytes:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as connection:
        connection.sendall(text if isinstance(text, bytes) else text.encode())
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
        except ConnectionResetError:  # closed while something that we sent was not read
            return found
        return found


def test_head(local: str) -> None:
    answer = httpx.head(f"{local}/v2")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


HEAD = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (HEAD + "Content-Length: 5000\r\n\r\n" + "x" * 5000, 413),
        (HEAD + "Transfer-Encoding: chunked\r\n\r\n1388\r\n" + "x" * 5000 + "\r\n0\r\n\r\n", 413),
        (HEAD + "Content-Length: 10\r\n\r\nhalf", 408),
        (HEAD + "Inference-Header-Content-Length: -1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", 400),
    ],
)
@again_after_a_stall
def test_bodies_are_bounded(running: tuple[Served, Simulated], text: str, status: int) -> None:
    limits = Limits(request_body_bytes=4000, body_read_seconds=0.5, header_read_seconds=0.5)
    with proxy(running[0].url, limits=limits) as url:
        assert int(raw(url, text).split(b" ", 2)[1]) == status
        assert httpx.get(f"{url}/v2/health/live").status_code == 200


@pytest.mark.parametrize("text", ["", "GET /v2 HT", "nonsense\r\n\r\n", "GET /v2 HTTP/1.1\r\nX: " + "y" * 100_000])
@again_after_a_stall
def test_heads_are_bounded(running: tuple[Served, Simulated], text: str) -> None:
    with proxy(running[0].url, limits=Limits(header_read_seconds=0.5)) as url:
        assert not raw(url, text) or raw(url, text).startswith(b"HTTP/1.1 4")
        assert httpx.get(f"{url}/v2/health/live").status_code == 200


def test_connections_are_bounded(running: tuple[Served, Simulated], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_http, "CONNECTIONS", 3)
    with proxy(running[0].url) as url:
        parts = urlsplit(url)
        held = [socket.create_connection((parts.hostname or "", parts.port or 0)) for _ in range(3)]
        assert raw(url, "GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        for connection in held:
            connection.close()
        request = "GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        wait_until(lambda: raw(url, request) != b"")  # places are given back


def test_only_this_machine_is_listened_to(local: str) -> None:
    assert urlsplit(local).hostname == "127.0.0.1"


def test_it_works_where_the_service_asks_for_work(tmp_path: Path) -> None:
    """A client that knows of no proofs gets its answer; the control is the same request without the proxy."""
    toll = DefenseSpec(name="proof-of-work", parameters={"bits": 6})
    sealed = seal_mlp(tmp_path / "mlp", (BOUNDS, toll, RELEASE))
    with serve_simulated(sealed, state=tmp_path / "state") as (served, (enclave,)), proxy(served.url) as local:
        assert served.infer(images(3)).json()["code"] == "request.work_required"
        body, json_bytes = encode_request({"image": images(3)})
        headers = {"inference-header-content-length": str(json_bytes)}
        for _ in range(2):
            assert httpx.post(local + INFER, content=body, headers=headers).status_code == 200
    codes = [ask.sealed for ask in enclave.asks]
    assert codes == [False, True, True, True], "asked without a proof once, and then not again"


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        (b'{"inputs":[{"shape":[7,2]}]}', 7),
        (b'{"inputs":[]}', 1),
        (b"{", 1),
        (b'{"inputs":[{"shape":[]}]}', 1),
        (b'{"inputs":[{"shape":[-3,2]}]}', 1),
    ],
)
def test_rows_of_a_request(body: bytes, rows: int) -> None:
    assert rows_of(body, -1) == rows
    assert rows_of(body + b"more", len(body)) == rows
