"""What a client can hold on to is bounded: slow, endless, vanished and numerous clients."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tests.models import images
from tests.serving import Bundles, Served, serve
from tests.stalls import again_after_a_stall, wait_until

from garrison.limits import Limits
from garrison.server import rsgi

SECONDS = 20


@pytest.fixture(scope="module")
def small(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that has little memory for bodies."""
    limits = Limits(request_body_bytes=100_000, queue_bytes=150_000)
    with serve(bundles, "mlp-1", state=tmp_path_factory.mktemp("state"), limits=limits) as running:
        yield running


@pytest.fixture(scope="module")
def hasty(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that has no time for slow clients."""
    limits = Limits(body_read_seconds=0.5, header_read_seconds=1.0)
    with serve(bundles, "mlp-1", state=tmp_path_factory.mktemp("state"), limits=limits) as running:
        yield running


def test_a_look_that_fails_does_not_end_all_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsgi, "_SWEEP_SECONDS", 0.001)
    looks: list[int] = []

    def look() -> None:
        looks.append(0)
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        app: Any = SimpleNamespace(limits=Limits(), hosting=[])
        admission: Any = SimpleNamespace(sweep=look)
        task = asyncio.create_task(rsgi.RsgiApp(app, admission).sweep())
        while len(looks) < 3:
            assert not task.done()
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(run())


def test_a_batcher_hears_of_a_request_before_its_body_is_read() -> None:
    events: list[str] = []

    async def body() -> bytes:
        events.append("read")
        raise ConnectionError("seen enough")

    async def run() -> None:
        app: Any = SimpleNamespace(limits=Limits(), hosting=[])
        model: Any = SimpleNamespace(batcher=SimpleNamespace(announce=lambda: events.append("announced")))
        asking = rsgi.RsgiApp(app, SimpleNamespace())._infer(model, "alice", "/", {"content-length": "3"}, body)  # type: ignore[arg-type]
        with pytest.raises(ConnectionError, match="seen enough"):
            await asking

    asyncio.run(run())
    assert events == ["announced", "read"]


def connect(served: Served) -> socket.socket:
    parts = urlsplit(served.url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=SECONDS)


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


def status_and_code(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), json.loads(body)["code"]


HEAD = b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\n"


@again_after_a_stall
def test_a_body_that_does_not_come_is_given_up(hasty: Served) -> None:
    with connect(hasty) as slow:
        slow.sendall(HEAD + b"Content-Length: 100\r\n\r\nhalf")
        assert hasty.infer().status_code == 200
        assert status_and_code(everything(slow)) == (408, "request.slow")
    assert hasty.infer().status_code == 200


def test_a_body_that_trickles_is_given_up(hasty: Served) -> None:
    with connect(hasty) as slow:
        slow.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        start = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT012  it fails at some time while sending
            while time.monotonic() - start < SECONDS:
                slow.sendall(b"1\r\nx\r\n")
                time.sleep(0.1)


@again_after_a_stall
def test_a_head_that_does_not_come_is_given_up(hasty: Served) -> None:
    with connect(hasty) as slow:
        slow.sendall(b"POST /v2/models/mlp/inf")
        assert everything(slow) == b""
    assert hasty.infer().status_code == 200


def test_a_body_longer_than_it_says_it_may_be_is_not_read(small: Served) -> None:
    with connect(small) as client:
        client.sendall(HEAD + b"Content-Length: 100001\r\n\r\n")
        assert status_and_code(everything(client)) == (413, "request.too_large")


@pytest.mark.parametrize("length", [1_000, 90_000], ids=["read at once", "read in parts"])
def test_a_body_that_ends_early_is_said_to(small: Served, length: int) -> None:
    """A client that has sent its last byte and still listens: what it sent must not count as the whole."""
    whole = json.dumps({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}]})
    body = whole.encode().ljust(length)
    for cut, expected in ((0, b"HTTP/1.1 200"), (1, b"HTTP/1.1 400")):
        with connect(small) as client:
            client.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % length + body[: length - cut])
            if cut:
                client.shutdown(socket.SHUT_WR)
            answer = everything(client)
        assert answer.startswith(expected)
    assert status_and_code(answer) == (400, "request.malformed")


def test_an_endless_body_is_cut_off(small: Served) -> None:
    with connect(small) as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"4000\r\n" + bytes(0x4000) + b"\r\n"
        with pytest.raises(OSError):  # noqa: PT012  it fails at some time while sending
            for _ in range(2000):
                client.sendall(piece)
            everything(client)
            raise ConnectionResetError  # the answer was read before the reset arrived
    assert small.infer().status_code == 200


def test_a_body_in_pieces_is_a_body(small: Served) -> None:
    with connect(small) as client:
        body = json.dumps(
            {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}]}
        ).encode()
        pieces = [body[i : i + 50] for i in range(0, len(body), 50)]
        client.sendall(HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            client.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        client.sendall(b"0\r\n\r\n")
        assert everything(client).startswith(b"HTTP/1.1 200")


def test_bodies_held_at_once_are_bounded_in_sum(small: Served) -> None:
    with connect(small) as first, connect(small) as second:
        first.sendall(HEAD + b"Content-Length: 99999\r\n\r\n" + bytes(90_000))
        wait_until(lambda: small.assembly.rsgi.held.bytes == 90_000)
        second.sendall(HEAD + b"Content-Length: 99999\r\n\r\n" + bytes(90_000))
        assert status_and_code(everything(second)) == (503, "unavailable")
    wait_until(lambda: small.assembly.rsgi.held.bytes == 0)
    assert small.infer().status_code == 200


def test_one_caller_does_not_fill_the_memory_for_others(small: Served) -> None:
    """Without keys a caller is an address. This one holds half of the memory; more of his waits for it, another's does not."""
    head = HEAD + b"Content-Length: 80000\r\n\r\n"
    with connect(small) as first, connect(small) as second:
        first.sendall(head + bytes(79_000))
        wait_until(lambda: small.assembly.rsgi.held.bytes == 79_000)
        second.sendall(head + bytes(79_000))
        assert status_and_code(everything(second)) == (503, "unavailable")
        parts = urlsplit(small.url)
        address = parts.hostname or "", parts.port or 0
        with socket.create_connection(address, timeout=SECONDS, source_address=("127.0.0.2", 0)) as other:
            other.sendall(HEAD + b"Connection: close\r\nContent-Length: 66000\r\n\r\n" + bytes(66_000))
            assert status_and_code(everything(other))[0] == 400  # it was read: zeros are no request
    wait_until(lambda: small.assembly.rsgi.held.bytes == 0)


def test_clients_that_vanish_leave_nothing_behind(small: Served) -> None:
    for sent in (HEAD, HEAD + b"Content-Length: 100\r\n\r\n", HEAD + b"Content-Length: 90000\r\n\r\n" + bytes(70_000)):
        connect_and_go = connect(small)
        connect_and_go.sendall(sent)
        connect_and_go.close()
    assert small.infer().status_code == 200
    wait_until(lambda: (small.assembly.rsgi.in_flight, small.assembly.rsgi.held.bytes) == (0, 0))
    assert small.assembly.rsgi._reading == {}


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n",
        HEAD + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
    ],
    ids=["TLS", "version", "two lengths", "negative length", "huge header"],
)
def test_what_is_not_http_does_not_stop_the_server(small: Served, garbage: bytes) -> None:
    with connect(small) as client:
        try:
            client.sendall(garbage)
            answer = everything(client)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert small.infer().status_code == 200


def test_a_connection_serves_many_requests_also_after_errors(small: Served) -> None:
    with httpx.Client(base_url=small.url) as client:
        for _ in range(3):
            assert client.get("/v2/health/live").status_code == 200
            assert client.post("/v2/models/nope/infer", content=b"x" * 1000).status_code == 404
            assert client.post("/v2/models/mlp/infer", content=b"x").status_code == 400


def test_hundreds_of_idle_connections_keep_nobody_out(small: Served) -> None:
    idle = [connect(small) for _ in range(300)]
    try:
        assert small.infer(images(1)).status_code == 200
    finally:
        for client in idle:
            client.close()
