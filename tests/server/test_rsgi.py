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

from garrison.limits import Limits
from garrison.server import rsgi

LIMITS = Limits(body_read_seconds=0.5, header_read_seconds=1.0, request_body_bytes=100_000, queue_bytes=150_000)


@pytest.fixture(scope="module")
def hasty(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that has no time for slow clients."""
    with serve(bundles, "mlp-1", state=tmp_path_factory.mktemp("state"), limits=LIMITS) as running:
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


def connect(served: Served) -> socket.socket:
    parts = urlsplit(served.url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10)


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
            while time.monotonic() - start < 5:
                slow.sendall(b"1\r\nx\r\n")
                time.sleep(0.1)
        assert time.monotonic() - start < 4


def test_a_head_that_does_not_come_is_given_up(hasty: Served) -> None:
    with connect(hasty) as slow:
        slow.sendall(b"POST /v2/models/mlp/inf")
        assert everything(slow) == b""
    assert hasty.infer().status_code == 200


def test_a_body_longer_than_it_says_it_may_be_is_not_read(hasty: Served) -> None:
    with connect(hasty) as client:
        client.sendall(HEAD + b"Content-Length: 100001\r\n\r\n")
        assert status_and_code(everything(client)) == (413, "request.too_large")


@pytest.mark.parametrize("length", [1_000, 90_000], ids=["read at once", "read in parts"])
def test_a_body_that_ends_early_is_said_to(hasty: Served, length: int) -> None:
    """A client that has sent its last byte and still listens: what it sent must not count as the whole."""
    whole = json.dumps({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}]})
    body = whole.encode().ljust(length)
    for cut, expected in ((0, b"HTTP/1.1 200"), (1, b"HTTP/1.1 400")):
        with connect(hasty) as client:
            client.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % length + body[: length - cut])
            if cut:
                client.shutdown(socket.SHUT_WR)
            answer = everything(client)
        assert answer.startswith(expected)
    assert status_and_code(answer) == (400, "request.malformed")


def test_an_endless_body_is_cut_off(hasty: Served) -> None:
    with connect(hasty) as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"4000\r\n" + bytes(0x4000) + b"\r\n"
        with pytest.raises(OSError):  # noqa: PT012  it fails at some time while sending
            for _ in range(2000):
                client.sendall(piece)
            everything(client)
            raise ConnectionResetError  # the answer was read before the reset arrived
    assert hasty.infer().status_code == 200


def test_a_body_in_pieces_is_a_body(hasty: Served) -> None:
    with connect(hasty) as client:
        body = json.dumps(
            {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}]}
        ).encode()
        pieces = [body[i : i + 50] for i in range(0, len(body), 50)]
        client.sendall(HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            client.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        client.sendall(b"0\r\n\r\n")
        assert everything(client).startswith(b"HTTP/1.1 200")


def test_bodies_held_at_once_are_bounded_in_sum(hasty: Served) -> None:
    with connect(hasty) as first, connect(hasty) as second:
        for client in (first, second):
            client.sendall(HEAD + b"Content-Length: 99999\r\n\r\n" + bytes(90_000))
        codes = {status_and_code(everything(client)) for client in (first, second)}
        assert (503, "unavailable") in codes
    assert hasty.infer().status_code == 200
    assert hasty.assembly.rsgi.held.bytes == 0


def test_one_caller_does_not_fill_the_memory_for_others(hasty: Served) -> None:
    """Without keys a caller is an address. This one holds half of the memory; more of his waits for it, another's does not."""
    head = HEAD + b"Content-Length: 80000\r\n\r\n"
    with connect(hasty) as first, connect(hasty) as second:
        first.sendall(head + bytes(79_000))
        time.sleep(0.1)
        second.sendall(head + bytes(79_000))
        assert status_and_code(everything(second)) == (503, "unavailable")
        parts = urlsplit(hasty.url)
        address = parts.hostname or "", parts.port or 0
        with socket.create_connection(address, timeout=10, source_address=("127.0.0.2", 0)) as other:
            other.sendall(HEAD + b"Connection: close\r\nContent-Length: 66000\r\n\r\n" + bytes(66_000))
            assert status_and_code(everything(other))[0] == 400  # it was read: zeros are no request


def test_clients_that_vanish_leave_nothing_behind(hasty: Served) -> None:
    for sent in (HEAD, HEAD + b"Content-Length: 100\r\n\r\n", HEAD + b"Content-Length: 90000\r\n\r\n" + bytes(70_000)):
        connect_and_go = connect(hasty)
        connect_and_go.sendall(sent)
        connect_and_go.close()
    assert hasty.infer().status_code == 200
    deadline = time.monotonic() + 5
    while (hasty.assembly.rsgi.in_flight or hasty.assembly.rsgi.held.bytes) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (hasty.assembly.rsgi.in_flight, hasty.assembly.rsgi.held.bytes) == (0, 0)
    assert hasty.assembly.rsgi._reading == {}


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
def test_what_is_not_http_does_not_stop_the_server(hasty: Served, garbage: bytes) -> None:
    with connect(hasty) as client:
        try:
            client.sendall(garbage)
            answer = everything(client)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert hasty.infer().status_code == 200


def test_a_connection_serves_many_requests_also_after_errors(hasty: Served) -> None:
    with httpx.Client(base_url=hasty.url) as client:
        for _ in range(3):
            assert client.get("/v2/health/live").status_code == 200
            assert client.post("/v2/models/nope/infer", content=b"x" * 1000).status_code == 404
            assert client.post("/v2/models/mlp/infer", content=b"x").status_code == 400


def test_hundreds_of_idle_connections_keep_nobody_out(hasty: Served) -> None:
    idle = [connect(hasty) for _ in range(300)]
    try:
        assert hasty.infer(images(1)).status_code == 200
    finally:
        for client in idle:
            client.close()
