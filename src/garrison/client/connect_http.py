"""The local proxy's HTTP/1.1: asyncio's streams, parsed by h11. Loopback only.

Bounded: connections, a request's head, its body, all bodies together, and the time for each of them. h11 is what httpx reads
answers with, so the proxy adds no package and no second web server to a client.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import h11
import httpx

from garrison.client.bounded import trusting
from garrison.client.connect import LocalAnswer, LocalRequest, Proxy, error_answer
from garrison.client.http import AS_IT_IS, carry, checked_url
from garrison.errors import ConfigError, GarrisonError, LimitError, SlowRequestError, UnavailableError
from garrison.limits import DEFAULT_LIMITS, Limits

logger = logging.getLogger(__name__)

CONNECTIONS = 128
_HEAD_BYTES = 32 * 1024
_READ_BYTES = 64 * 1024
_LOOPBACK = "127.0.0.1"

Handle = Callable[[LocalRequest], Awaitable[LocalAnswer]]
OnReady = Callable[[str], None]


async def serve_proxy(
    url: str,
    proxy: Proxy,
    *,
    port: int,
    timeout_seconds: float,
    on_ready: OnReady,
    stop: asyncio.Event,
    limits: Limits = DEFAULT_LIMITS,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Run a proxy on this machine's loopback until `stop` is set.

    Args:
        url: the server's.
        port: to listen at; 0 for any free one.
        timeout_seconds: for each request to the server.
        on_ready: called with the proxy's URL once it listens.
        tls: towards the server; None for the system's authorities.

    Raises:
        ConfigError: the URL is none, or the port cannot be used.
    """
    base = checked_url(url)
    with _listen(port) as listener:
        async with httpx.AsyncClient(
            base_url=base, timeout=timeout_seconds, trust_env=False, headers=AS_IT_IS, verify=trusting(tls)
        ) as http:
            await _serve(listener, http, proxy, on_ready, stop, limits)


async def _serve(
    listener: socket.socket,
    http: httpx.AsyncClient,
    proxy: Proxy,
    on_ready: OnReady,
    stop: asyncio.Event,
    limits: Limits,
) -> None:

    async def handle(request: LocalRequest) -> LocalAnswer:
        return await carry(http, proxy.answer(request), limits.request_body_bytes, http.timeout.read)

    server = await asyncio.start_server(LocalServer(handle, limits).serve, sock=listener)
    async with server:
        on_ready(f"http://{_LOOPBACK}:{listener.getsockname()[1]}")
        await stop.wait()


class LocalServer:
    """Reads requests, writes answers.

    Args:
        handle: answers a request; may raise `GarrisonError`.
        limits: `request_body_bytes`, `queue_bytes`, `header_read_seconds`, `body_read_seconds` count here.
    """

    def __init__(self, handle: Handle, limits: Limits) -> None:
        self._handle = handle
        self._limits = limits
        self._open = 0
        self._held = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        self._open += 1
        try:
            if self._open <= CONNECTIONS:
                await _Connection(self, reader, writer).run()
        except (ConnectionError, TimeoutError, h11.ProtocolError) as error:
            logger.debug("a local connection has ended: %r", error)
        except (
            asyncio.CancelledError
        ):  # the proxy stops; asyncio of Python 3.11 would complain about a cancelled connection
            logger.debug("a local connection was open when the proxy stopped")
        finally:
            self._open -= 1
            writer.close()

    async def answer(self, request: h11.Request, body: bytes) -> LocalAnswer:
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}
        local = LocalRequest(request.method.decode("ascii"), request.target.decode("latin-1"), headers, body)
        try:
            return await self._handle(local)
        except GarrisonError as error:
            return error_answer(error)

    def hold(self, more: int) -> None:
        """Count bytes of bodies.

        Raises:
            UnavailableError: all bodies together are too long.
        """
        self._held += more
        if more > 0 and self._held > self._limits.queue_bytes:
            raise UnavailableError("the requests that are being answered fill the memory for them; try again")

    @property
    def limits(self) -> Limits:
        return self._limits


class _Connection:
    """A local client's connection."""

    def __init__(self, server: LocalServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)

    async def run(self) -> None:
        while True:
            async with asyncio.timeout(self._server.limits.header_read_seconds):
                request = await self._next_event()
            if not isinstance(request, h11.Request):
                return
            await self._answer(request)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _answer(self, request: h11.Request) -> None:
        held: list[bytes] = []
        try:
            await self._read_body(held)
            answer = await self._server.answer(request, b"".join(held))
        except GarrisonError as error:
            answer = error_answer(error)
        finally:
            self._server.hold(-sum(map(len, held)))
        await self._write(request, answer)

    async def _read_body(self, held: list[bytes]) -> None:
        limits, length = self._server.limits, 0
        try:
            async with asyncio.timeout(limits.body_read_seconds):
                while not isinstance(event := await self._next_event(), h11.EndOfMessage):
                    if not isinstance(event, h11.Data):
                        raise ConnectionResetError("the client has gone")
                    held.append(bytes(event.data))
                    length += len(event.data)
                    self._server.hold(len(event.data))
                    if length > limits.request_body_bytes:
                        raise LimitError(f"a body may have {limits.request_body_bytes} bytes, found more")
        except TimeoutError as error:
            raise SlowRequestError(f"the body did not arrive within {limits.body_read_seconds:g} seconds") from error

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._reader.read(_READ_BYTES))
        return event

    async def _write(self, request: h11.Request, answer: LocalAnswer) -> None:
        headers = [*answer.headers, ("content-length", str(len(answer.body)))]
        if self._http.their_state is not h11.DONE:  # what is left of the body is not read
            headers.append(("connection", "close"))
        await self._send(h11.Response(status_code=answer.status, headers=headers, reason=_phrase(answer.status)))
        if request.method != b"HEAD":
            await self._send(h11.Data(data=answer.body))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_LOOPBACK, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen at {_LOOPBACK}:{port}: {error.strerror}; choose another --port") from error
    return listener
