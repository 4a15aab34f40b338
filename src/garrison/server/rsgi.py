"""The thin adapter between `App` and granian's RSGI. The only file that knows the web server.

Bounds what a client can hold on to: the length of a body (by its header, and while it comes in), the time for it, and the bytes
that all bodies together take. Nothing is logged for a request that goes well.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from functools import partial
from typing import Any

from granian._granian import RSGIProtocolClosed, SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from garrison.errors import (
    GarrisonError,
    LimitError,
    MalformedRequestError,
    MethodError,
    SlowRequestError,
    UnavailableError,
)
from garrison.protocol.http_status import INTERNAL
from garrison.protocol.messages import Reply
from garrison.server.app import (
    LENGTH_HEADER,
    NONCE_HEADER,
    TIMEOUT_HEADER,
    WORK_HEADER,
    App,
    Route,
    is_sealed,
    rate_limits,
    read_deadline,
    read_question,
    read_sealed,
    write_answer,
    write_evidence,
    write_sealed,
)
from garrison.server.auth import Authenticator
from garrison.server.batching import Batcher
from garrison.server.http_errors import Answer, answer_of, error_answer
from garrison.server.listening import BACKLOG

logger = logging.getLogger(__name__)

_SMALL_BODY_BYTES = 64 * 1024
_PAGE_BODY_BYTES = 64 * 1024
_SWEEP_SECONDS = 0.5
_NO_UNIX_SOCKET = False


class _ClientGoneError(Exception):
    """Nobody is there to read an answer."""


class RsgiApp:
    """Speaks RSGI. To be used on one event loop.

    Attributes:
        in_flight: requests that are being answered.
    """

    def __init__(self, app: App, authenticator: Authenticator) -> None:
        self._app = app
        self._limits = app.limits
        self._auth = authenticator
        self._held_bytes = 0
        self._held_by: dict[str, int] = {}
        self._reading: dict[asyncio.Task[Any], float] = {}
        self._waiting: dict[asyncio.Future[Reply], Any] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self.in_flight = 0

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        self.in_flight += 1
        try:
            answer = await self._answer(scope, protocol)
            if scope.method == "HEAD":
                protocol.response_empty(answer.status, answer.headers)
            else:
                protocol.response_bytes(answer.status, answer.headers, answer.body)
        except (_ClientGoneError, RSGIProtocolClosed):
            logger.debug("a client has gone before its answer")
        finally:
            self.in_flight -= 1

    async def sweep(self) -> None:
        """Ends what has taken too long, gives back what nobody uses, and looks for new keys; until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = loop.time()
            for task in [task for task, deadline in self._reading.items() if deadline <= now]:
                task.cancel()
            for model in self._app.hosting:
                model.batcher.sweep()
            self._watch()
            self._auth.refresh()

    async def _answer(self, scope: Any, protocol: Any) -> Answer:
        try:
            route = self._app.route(scope.path)
            caller = "" if route and route.open else self._auth.caller(scope.headers.get("authorization"), scope.client)
            if route is None:
                raise self._app.why_not_found(scope.path)
            if scope.method not in route.methods:
                return _wrong_method(scope.method, route)
            page = route.page_for(caller)
            if page is not None:
                if scope.method == "POST":
                    await self._read(scope, protocol, _PAGE_BODY_BYTES, caller)
                return page()
            if route.evidence:
                model, nonce = self._app.read_challenge(scope.query_string)
                return write_evidence(await model.evidence(nonce))
            return await self._infer(route, caller, scope, protocol)
        except GarrisonError as error:
            return answer_of(error)
        except (_ClientGoneError, RSGIProtocolClosed, asyncio.CancelledError):
            raise
        except Exception:
            logger.exception("a request to %r failed", scope.path)
            return error_answer(INTERNAL, "")

    async def _infer(self, route: Route, caller: str, scope: Any, protocol: Any) -> Answer:
        model, headers = route.model, scope.headers
        if model is None:
            raise GarrisonError("a route leads to neither page nor model")
        if headers.get("content-encoding", "identity") != "identity":
            raise MalformedRequestError("compressed bodies are not read; send this one as it is")
        deadline = read_deadline(_single(headers, TIMEOUT_HEADER), time.monotonic())
        body = await self._read(scope, protocol, self._limits.request_body_bytes, caller)
        self._hold(caller, len(body))
        try:
            length = _single(headers, LENGTH_HEADER)
            if is_sealed(headers.get("content-type")):
                sealed = read_sealed(model, caller, body, length, deadline)
                reply = await self._reply(model.batcher.submit(sealed), model.batcher, protocol)
                return write_sealed(reply, rate_limits(model, sealed, reply))
            nonce = _single(headers, NONCE_HEADER)
            work = None if model.card.work is None else _single(headers, WORK_HEADER)
            question = read_question(model, caller, body, length, nonce, self._limits, deadline, work)
            reply = await self._reply(model.batcher.submit(question), model.batcher, protocol)
            return write_answer(reply, rate_limits(model, question, reply))
        finally:
            self._let_go(caller, len(body))

    def _hold(self, caller: str, length: int, own: int = 0) -> None:
        """Count bytes of a body, of which `own` are counted already.

        Raises:
            UnavailableError: the memory for bodies is full, or the caller's other bodies take more than is left of it.
        """
        mine, free = self._held_by.get(caller, 0), self._limits.queue_bytes - self._held_bytes
        if length > free or mine - own > free:
            raise UnavailableError("the requests that are being answered fill the memory for them; try again")
        self._held_bytes += length
        self._held_by[caller] = mine + length

    def _let_go(self, caller: str, length: int) -> None:
        self._held_bytes -= length
        left = self._held_by.get(caller, 0) - length
        if left > 0:
            self._held_by[caller] = left
        else:
            self._held_by.pop(caller, None)

    async def _reply(self, future: asyncio.Future[Reply], batcher: Batcher, protocol: Any) -> Reply:
        if not batcher.busy:
            return await future
        self._waiting[future] = protocol
        try:
            return await future
        except asyncio.CancelledError as error:
            raise _ClientGoneError from error
        finally:
            self._waiting.pop(future, None)

    def _watch(self) -> None:
        """Notice when a client goes that has waited for a while, so that nothing is computed for nobody."""
        waiting, self._waiting = self._waiting, {}
        for future, protocol in waiting.items():
            if not future.done():
                watch = asyncio.ensure_future(_cancel_when_gone(future, protocol))
                self._watches.add(watch)
                watch.add_done_callback(self._watches.discard)
                future.add_done_callback(partial(_end, watch))

    async def _read(self, scope: Any, protocol: Any, most: int, caller: str) -> bytes:
        declared = scope.headers.get("content-length")
        length = int(declared) if declared is not None and declared.isdigit() else None
        if length is not None and length > most:
            raise _too_long(most, length)
        task = asyncio.current_task()
        if task is None:
            raise GarrisonError("a request is answered outside a task")
        self._reading[task] = asyncio.get_running_loop().time() + self._limits.body_read_seconds
        try:
            if length is not None and length <= _SMALL_BODY_BYTES:
                body: bytes = await protocol()
                return body
            return await self._stream(protocol, most, caller)
        except asyncio.CancelledError as error:
            task.uncancel()
            raise SlowRequestError(
                f"the body did not arrive within {self._limits.body_read_seconds:g} seconds"
            ) from error
        finally:
            del self._reading[task]

    async def _stream(self, protocol: Any, most: int, caller: str) -> bytes:
        """A long body, or one of unknown length: counted against all that is held while it comes in."""
        parts: list[bytes] = []
        length = 0
        try:
            async for part in protocol:
                if length + len(part) > most:
                    raise _too_long(most, length + len(part))
                self._hold(caller, len(part), length)
                length += len(part)
                parts.append(bytes(part))
            return b"".join(parts)
        finally:
            self._let_go(caller, length)


def make_server(application: RsgiApp, listener: socket.socket, header_read_seconds: float, connections: int) -> Server:
    """A web server on a socket that listens already. `serve()` runs until `stop()`, and then finishes what is in flight."""
    return _ListeningServer(
        listener,
        application,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        backlog=BACKLOG,
        backpressure=connections,
        http1_settings=HTTP1Settings(header_read_timeout=int(header_read_seconds * 1000)),
        log_enabled=False,
    )


class _ListeningServer(Server):  # type: ignore[misc]  # granian's types are not read
    """Takes a socket of ours: granian's own is bound so that a second server on the same port would go unnoticed."""

    def __init__(self, listener: socket.socket, application: RsgiApp, **options: Any) -> None:
        self._listener = listener
        super().__init__(application, **options)

    def _init_shared_socket(self) -> None:
        # From here on the web server owns the descriptor, and closes it when it stops.
        holder: Any = SocketHolder
        self._ssp, self._shd = None, holder(self._listener.detach(), _NO_UNIX_SOCKET, BACKLOG)
        self._sfd = self._shd.get_fd()


def _end(watch: asyncio.Task[None], _: asyncio.Future[Reply]) -> None:
    watch.cancel()


async def _cancel_when_gone(future: asyncio.Future[Reply], protocol: Any) -> None:
    await protocol.client_disconnect()
    future.cancel()


def _single(headers: Any, name: str) -> str | None:
    """A header that may stand once. One that is there and cannot be read must not count as absent."""
    if name not in headers:
        return None
    values: list[str] = headers.get_all(name)
    if len(values) != 1:
        raise MalformedRequestError(f"the header {name} must stand once, in printable ASCII")
    return values[0]


def _wrong_method(method: str, route: Route) -> Answer:
    allowed = ", ".join(route.methods)
    return error_answer(MethodError.code, f"expected {allowed}, found {method[:16]}", [("allow", allowed)])


def _too_long(most: int, found: int) -> LimitError:
    return LimitError(f"a body may have {most} bytes, found {found} or more")
