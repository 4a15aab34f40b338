"""The thin adapter between `App` and granian's RSGI. The only file that knows the web server.

Bounds what a client can hold on to: the length of a body (by its header, and while it comes in), the time for it, and the bytes
that all bodies together take. Nothing is logged for a request that goes well.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeAlias

from granian._granian import RSGIProtocolClosed, RSGIProtocolError, SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from garrison.errors import (
    GarrisonError,
    LimitError,
    MalformedRequestError,
    MethodError,
    SlowRequestError,
)
from garrison.limits import Limits
from garrison.protocol.http_signature import ACCEPT_HEADER, DIGEST_HEADER
from garrison.protocol.http_status import INTERNAL
from garrison.protocol.messages import Reply
from garrison.server.admission import Admission, TurnedAway
from garrison.server.app import App, Route, write_evidence
from garrison.server.batching import Batcher
from garrison.server.held import HeldBytes
from garrison.server.hosting import Model
from garrison.server.http_errors import Answer, answer_of, error_answer
from garrison.server.identity import ANYONE, Identity
from garrison.server.listening import BACKLOG
from garrison.server.questions import (
    LENGTH_HEADER,
    NONCE_HEADER,
    TIMEOUT_HEADER,
    WORK_HEADER,
    is_sealed,
    rate_limits,
    read_deadline,
    read_question,
    read_sealed,
    write_answer,
    write_sealed,
)
from garrison.server.signing import Signatures
from garrison.server.tally import Counted
from garrison.server.tls import Certificates
from garrison.server.waiting import Waiting

logger = logging.getLogger(__name__)

WebServer: TypeAlias = Server

AUTHORIZATION = "authorization"
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
        held: what their bodies take.
        tracing: see `garrison.server.tracing`; None for no traces.
    """

    def __init__(self, app: App, admission: Admission, signatures: Signatures | None = None) -> None:
        self._app = app
        self._signatures = signatures or Signatures()
        self._limits = app.limits
        self._admission = admission
        self.held = HeldBytes(self._limits.queue_bytes)
        self._reading: dict[asyncio.Task[Any], float] = {}
        self._waiting: dict[asyncio.Future[Reply], Any] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self.in_flight = 0
        self.tracing: Any = None

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

    def use(self, limits: Limits) -> None:
        """Take these limits in place of those before; see `garrison.server.reload`."""
        self._limits = self._app.limits = limits
        self.held.most = limits.queue_bytes
        for model in self._app.hosting:
            model.batcher.use(limits)

    def counted(self) -> Counted:
        """What this process has counted so far. May be called from any thread."""
        hosting = self._app.hosting
        models = [m.batcher.count.copied(m.name, m.version, m.batcher.queued) for m in hosting]
        return Counted(models, dict(self._app.refused), self.in_flight)

    async def sweep(self) -> None:
        """Ends what has taken too long, gives back what nobody uses, and looks for new keys; until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = loop.time()
            for task in [task for task, deadline in self._reading.items() if deadline <= now]:
                task.cancel()
            try:
                for model in self._app.hosting:
                    model.batcher.sweep()
                self._watch()
                self._admission.sweep()
            except Exception:  # without this task a key that was revoked would stay good
                logger.exception("a look at what takes too long, and for new keys, failed")

    async def _answer(self, scope: Any, protocol: Any) -> Answer:
        path = scope.path  # each of these is made anew when it is asked for
        try:
            route = self._app.route(path)
            who, headers = ANYONE, scope.headers
            if route is None or not route.open:
                who = self._admission.identify(_single(headers, AUTHORIZATION), scope.client)
            if route is None:
                raise self._app.why_not_found(path, who.scopes)
            self._app.allow(route, who.scopes, path)
            if scope.method not in route.methods:
                return _wrong_method(scope.method, route)
            if route.model is not None:
                away = self._admission.turned_away(who.name, route.model)
                if away is not None:
                    return self._turn_away(away)
                inferring = self._infer(route.model, who.name, path, headers, protocol)
                return await (inferring if self.tracing is None else self._traced(route.model, headers, inferring))
            return await self._show(route, who, scope, protocol)
        except GarrisonError as error:
            self._app.count_refused(error.code)
            return answer_of(error)
        except (_ClientGoneError, RSGIProtocolClosed, asyncio.CancelledError):
            raise
        except Exception:
            logger.exception("a request to %r failed", path)
            return error_answer(INTERNAL, "")

    async def _show(self, route: Route, who: Identity, scope: Any, protocol: Any) -> Answer:
        """A page, or evidence."""
        page = route.page_for(who.name, who.scopes)
        if page is not None:
            if scope.method == "POST":
                await self._read(scope.headers, protocol, _PAGE_BODY_BYTES, who.name)
            return page()
        model, nonce = self._app.read_challenge(scope.query_string, who.scopes)
        away = self._admission.too_fast(who.name, model)
        return self._turn_away(away) if away is not None else write_evidence(await model.evidence(nonce, who.name))

    def _turn_away(self, away: TurnedAway) -> Answer:
        self._app.count_refused(away.code)
        return error_answer(*away)

    async def _traced(self, model: Model, headers: Any, inferring: Coroutine[Any, Any, Answer]) -> Answer:
        answer: Answer = await self.tracing.around(headers.get_all("traceparent"), model, inferring)
        return answer

    async def _infer(self, model: Model, caller: str, path: str, headers: Any, protocol: Any) -> Answer:
        if (_single(headers, "content-encoding") or "identity") != "identity":
            raise MalformedRequestError("compressed bodies are not read; send this one as it is")
        deadline = read_deadline(_single(headers, TIMEOUT_HEADER), time.monotonic())
        model.batcher.announce()
        body = await self._read(headers, protocol, self._limits.request_body_bytes, caller)
        self.held.take(caller, len(body))
        try:
            length = _single(headers, LENGTH_HEADER)
            if is_sealed(_single(headers, "content-type")):
                sealed = read_sealed(model, caller, body, length, deadline)
                reply = await self._reply(sealed, model.batcher, protocol)
                return write_sealed(reply, rate_limits(model, sealed, reply))
            nonce = _single(headers, NONCE_HEADER)
            work = None if model.card.work is None else _single(headers, WORK_HEADER)
            accept = _single(headers, ACCEPT_HEADER)
            form = self._signatures.form(accept, _single(headers, DIGEST_HEADER), path, body)
            nonce = self._signatures.nonce(nonce, accept)
            question = read_question(model, caller, body, length, nonce, self._limits, deadline, work)
            question.form = form
            reply = await self._reply(question, model.batcher, protocol)
            return self._signatures.signed(write_answer(reply, rate_limits(model, question, reply)), form, reply)
        finally:
            self.held.give_back(caller, len(body))

    async def _reply(self, request: Waiting, batcher: Batcher, protocol: Any) -> Reply:
        future = batcher.submit(request, alone=self.in_flight == 1)
        if future.done() or not batcher.busy:
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

    async def _read(self, headers: Any, protocol: Any, most: int, caller: str) -> bytes:
        declared = headers.get("content-length")
        length = int(declared) if declared is not None and declared.isdigit() else None
        if length is not None and length > most:
            raise _too_long(most, length)
        task = asyncio.current_task()
        if task is None:
            raise GarrisonError("a request is answered outside a task")
        self._reading[task] = asyncio.get_running_loop().time() + self._limits.body_read_seconds
        try:
            small = length is not None and length <= _SMALL_BODY_BYTES
            body: bytes = await protocol() if small else await self._stream(protocol, most, caller)
        except (RSGIProtocolError, RSGIProtocolClosed) as error:
            raise _cut_short(length) from error
        except asyncio.CancelledError as error:
            task.uncancel()
            raise SlowRequestError(
                f"the body did not arrive within {self._limits.body_read_seconds:g} seconds"
            ) from error
        finally:
            del self._reading[task]
        if length is not None and len(body) != length:
            raise _cut_short(length)
        return body

    async def _stream(self, protocol: Any, most: int, caller: str) -> bytes:
        """A long body, or one of unknown length: counted against all that is held while it comes in."""
        parts: list[bytes] = []
        length = 0
        try:
            async for part in protocol:
                if length + len(part) > most:
                    raise _too_long(most, length + len(part))
                self.held.take(caller, len(part), length)
                length += len(part)
                parts.append(bytes(part))
            return b"".join(parts)
        finally:
            self.held.give_back(caller, length)


def make_server(
    application: RsgiApp,
    listener: socket.socket,
    header_read_seconds: float,
    connections: int,
    tls: Certificates | None = None,
) -> Server:
    """A web server on a socket that listens already. `serve()` runs until `stop()`, and then finishes what is in flight.

    Args:
        tls: what it shows and asks of clients; None for plain HTTP.
    """
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
        **({} if tls is None else tls.of_granian()),
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


def _cut_short(length: int | None) -> MalformedRequestError:
    return MalformedRequestError(f"the body ended before it was whole: {length} bytes were announced")


def _too_long(most: int, found: int) -> LimitError:
    return LimitError(f"a body may have {most} bytes, found {found} or more")
