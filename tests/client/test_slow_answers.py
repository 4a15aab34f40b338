"""A server that sends, or takes, a byte now and then is not waited for for ever: neither with a request nor for the head of its answer nor for the body."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from tests.stalls import again_after_a_stall

from garrison.client.bounded import BoundedTransport, Deadline
from garrison.client.http import AsyncClient, Client
from garrison.errors import UnavailableError

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-more: "
WHOLE = HEAD + b"1\r\ncontent-length: 1000000\r\n\r\n"
SECONDS, MOST_SECONDS = 0.4, 20.0


@contextmanager
def dripping(first: bytes) -> Iterator[str]:
    """A server that begins an answer, and goes on with a byte every 50 ms until the client goes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def drip(stream: socket.socket) -> None:
        with stream:
            try:
                stream.recv(65_536)
                stream.sendall(first)
                end = time.monotonic() + 2 * MOST_SECONDS
                while time.monotonic() < end:
                    stream.sendall(b"x")
                    time.sleep(0.05)
            except OSError:
                pass

    def serve() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(stream,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize("first", [b"", HEAD, WHOLE], ids=["nothing", "head", "body"])
def test_with_threads(first: bytes) -> None:
    with dripping(first) as url, Client(url, timeout=SECONDS, attempts=1) as client:
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            client.index()
        assert time.monotonic() - started < MOST_SECONDS


@pytest.mark.parametrize("first", [b"", HEAD, WHOLE], ids=["nothing", "head", "body"])
def test_with_an_event_loop(first: bytes) -> None:
    async def ask(url: str) -> None:
        async with AsyncClient(url, timeout=SECONDS, attempts=1) as client:
            await client.index()

    with dripping(first) as url:
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            asyncio.run(ask(url))
        assert time.monotonic() - started < MOST_SECONDS


@again_after_a_stall
def test_a_server_that_hardly_takes_the_request() -> None:
    """Each part of the request goes out within the time-out; all of it would take a minute."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)

    def sip() -> None:
        with contextlib.suppress(OSError):
            stream, _ = listener.accept()
            with stream:
                while stream.recv(65_536):
                    time.sleep(0.05)

    threading.Thread(target=sip, daemon=True).start()
    deadline = Deadline()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with listener, httpx.Client(timeout=SECONDS, trust_env=False, transport=BoundedTransport(deadline)) as client:
        started = time.monotonic()
        deadline.at = started + 2 * SECONDS
        with pytest.raises(httpx.WriteTimeout):
            client.post(url, content=bytes(64 * 1024 * 1024))
        assert time.monotonic() - started < MOST_SECONDS
