"""Both clients keep their connection, and repeat a request only where nothing can have been charged."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.models import images
from tests.serving import Served
from tests.stalls import again_after_a_stall

from garrison.client import AsyncClient, Client
from garrison.client.talk import Pause, Unreachable, exchange
from garrison.errors import (
    BudgetExhaustedError,
    ConfigError,
    GarrisonError,
    InputError,
    ServiceError,
    UnavailableError,
)
from garrison.protocol.http_messages import Request, Response

BUSY = b'{"error": "busy", "code": "unavailable"}'


class Script(ThreadingHTTPServer):
    """Answers as it is told to, one answer a request; counts connections and requests."""

    daemon_threads = True

    def __init__(self, *answers: tuple[int, dict[str, str], bytes] | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.requests = 0
        self.connections = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Script

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.requests += 1
        answer = self.server.answers.pop(0) if self.server.answers else (200, {}, b"[]")
        if answer is None:  # break off
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        status, headers, body = answer
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def script(*answers: tuple[int, dict[str, str], bytes] | None) -> Iterator[Script]:
    server = Script(*answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def ask(server: Script, *, asynchronous: bool, times: int = 1) -> Any:
    """`index()` is the shortest question."""
    url = f"http://127.0.0.1:{server.server_port}"
    if not asynchronous:
        with Client(url) as client:
            return [client.index() for _ in range(times)]

    async def main() -> Any:
        async with AsyncClient(url) as client:
            return [await client.index() for _ in range(times)]

    return asyncio.run(main())


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@both
def test_a_connection_is_used_again(asynchronous: bool) -> None:
    with script() as server:
        ask(server, asynchronous=asynchronous, times=5)
        assert (server.requests, server.connections) == (5, 1)


def test_questions_of_one_event_loop_share_connections(served: Served) -> None:
    async def main() -> None:
        async with AsyncClient(served.url, model="mlp") as client:
            answers = await asyncio.gather(*(client.predict(images(1, seed)) for seed in range(20)))
            assert all(answer.proved for answer in answers)

    asyncio.run(main())


@both
def test_a_busy_server_is_asked_again_when_it_says(asynchronous: bool) -> None:
    with script((503, {"retry-after": "1"}, BUSY)) as server:
        started = time.monotonic()
        ask(server, asynchronous=asynchronous)
        assert server.requests == 2
        assert time.monotonic() - started >= 1.0


@both
def test_who_came_too_fast_comes_again_when_it_may(asynchronous: bool) -> None:
    """Refused before it was read, and so charged nothing; a long array goes out in several requests, which alone may be too fast."""
    with script((429, {"retry-after": "1"}, b'{"error": "at most 2", "code": "request.too_fast"}')) as server:
        started = time.monotonic()
        ask(server, asynchronous=asynchronous)
        assert server.requests == 2
        assert time.monotonic() - started >= 1.0


@both
@pytest.mark.parametrize(
    "answer",
    [
        (503, {}, BUSY),
        (503, {"retry-after": "3600"}, BUSY),
        (503, {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, BUSY),
        (503, {}, b"<html>"),
        (500, {"retry-after": "0"}, b'{"error": "failed", "code": "internal"}'),
        (429, {"retry-after": "0"}, b'{"error": "no more", "code": "request.budget_exhausted"}'),
        (429, {"retry-after": "0"}, b"<html>"),
        None,
    ],
    ids=["503", "much later", "at a date", "a proxy's 503", "500", "429", "a proxy's 429", "broken off"],
)
def test_what_may_have_been_charged_is_not_asked_again(answer: Any, asynchronous: bool) -> None:
    with script(answer) as server:
        with pytest.raises((UnavailableError, ServiceError, BudgetExhaustedError)) as found:
            ask(server, asynchronous=asynchronous)
        assert server.requests == 1
        if answer is None:
            assert "may have been charged" in str(found.value)


@both
def test_a_server_that_is_not_there_yet_is_asked_again(asynchronous: bool, port: int) -> None:
    with pytest.raises(UnavailableError, match="after 2 attempts"):
        ask_index(f"http://127.0.0.1:{port}", asynchronous, attempts=2)


def test_patience_grows_and_ends() -> None:
    talk = exchange(Request("GET", "/"), 4)
    steps: list[Any] = [next(talk)]
    answers: list[Response | Unreachable] = [
        Unreachable("refused"),
        Response(503, {"retry-after": "2"}, BUSY),
        Unreachable("refused"),
    ]
    for answer in answers:
        steps.append(talk.send(answer))
        steps.append(talk.send(None))
    assert [step.seconds for step in steps if isinstance(step, Pause)] == [0.1, 2.0, 0.4]
    with pytest.raises(GarrisonError, match="busy"):
        talk.send(Response(503, {"retry-after": "2"}, BUSY))


def drip(listener: socket.socket) -> None:
    """An answer that begins, and goes on for ever, a byte now and then: each comes in time."""
    with contextlib.suppress(OSError), listener.accept()[0] as stream:
        stream.recv(65536)
        stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while True:
            stream.sendall(b" ")
            time.sleep(0.05)


@pytest.mark.parametrize("asynchronous", [False, True])
@again_after_a_stall
def test_an_answer_that_drips_ends_in_time(asynchronous: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        url, started = f"http://127.0.0.1:{listener.getsockname()[1]}", time.monotonic()
        with pytest.raises(UnavailableError, match="in time"):
            ask_index(url, asynchronous, timeout=0.4)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"attempts": 1.5}, {"timeout": 0}, {"timeout": -1}, {"timeout": "x"}]
)
def test_arguments_that_make_no_sense(wrong: dict[str, Any], asynchronous: bool) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ask_index("http://127.0.0.1:1", asynchronous, **wrong)


def ask_index(url: str, asynchronous: bool, **options: Any) -> None:
    if not asynchronous:
        with Client(url, **options) as client:
            client.index()
        return

    async def main() -> None:
        async with AsyncClient(url, **options) as client:
            await client.index()

    asyncio.run(main())


@pytest.mark.parametrize("rows", [0, -1, 1.5])
def test_requests_of_less_than_a_row(served: Served, rows: Any) -> None:
    with Client(served.url, model="mlp") as client, pytest.raises(ConfigError, match="rows_a_request"):
        client.predict(images(2), rows_a_request=rows)


def test_rows_of_unequal_length(served: Served) -> None:
    ragged: Any = [[1.0], [1.0, 2.0]]
    with Client(served.url, model="mlp") as client:
        for x in (ragged, {"image": ragged}):
            with pytest.raises(InputError, match="array"):
                client.predict(x)
