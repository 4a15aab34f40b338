"""The thin adapter between `App` and grpc.aio, as `garrison.server.rsgi` is for HTTP. The only file that knows the gRPC server.

Who asks is known before a message is read. A message is bounded in length and in time, and so is the number of calls at once. What the server reads of
an inference request is the model's name (`garrison.protocol.oip_grpc`); the rest is read inside the enclave.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import unquote

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else clients could fill the log with what they do wrong

import grpc

from garrison.config import ServerConfig
from garrison.errors import (
    ConfigError,
    GarrisonError,
    MalformedRequestError,
    NotFoundError,
    SlowRequestError,
)
from garrison.limits import Limits
from garrison.protocol.http_status import INTERNAL
from garrison.protocol.oip import GRPC
from garrison.protocol.oip_grpc import model_of
from garrison.server.admission import Admission
from garrison.server.app import App, Route
from garrison.server.grpc.messages import (
    read_names,
    write_flag,
    write_health,
    write_index,
    write_model,
    write_server,
)
from garrison.server.grpc.status import status_of
from garrison.server.held import HeldBytes
from garrison.server.hosting import Model
from garrison.server.http_errors import Answer, Headers, extra_headers, shown
from garrison.server.identity import ANYONE
from garrison.server.questions import NONCE_HEADER, WORK_HEADER, proof_header, rate_limits, read_message
from garrison.server.rate_limits import LIMIT_HEADER, POLICY_HEADER, RETRY_HEADER
from garrison.server.tls import certificates
from garrison.server.waiting import NEVER

logger = logging.getLogger(__name__)
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
"""It would write a traceback for each call whose metadata is no UTF-8, with what the client sent."""

SERVICE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
AUTHORIZATION, CODE_KEY = "authorization", "garrison-code"
"""Who asks; and in the trailing metadata of an error, its code, as in HTTP's body."""
_IDLE_SECONDS, _PING_SECONDS, _PING_TIMEOUT_SECONDS = 300, 60, 20
_METADATA_BYTES = 16 * 1024
_AGAIN_SECONDS, _LOOK_SECONDS = 0.05, 0.5
_OK = 200
_IDENTITY_ONLY = 1
"""No compression: a short message could stand for a long one."""

_TOLD = frozenset({RETRY_HEADER, LIMIT_HEADER, POLICY_HEADER})
"""Headers of errors that go with a call's end too."""

Context = Any
Work = Callable[["_Call"], Awaitable[bytes]]


class _RefusedError(Exception):
    """A refusal that is no exception where it is made."""

    def __init__(self, code: str, detail: str, headers: Headers) -> None:
        super().__init__(detail)
        self.code, self.detail, self.headers = code, detail, headers


class _Call:
    """One call: who asks, the message, and what goes with the answer."""

    __slots__ = ("body", "context", "metadata", "trailers", "who")

    def __init__(self, context: Context) -> None:
        self.context = context
        self.who = ANYONE
        self.body = b""
        self.metadata: Sequence[tuple[str, Any]] = context.invocation_metadata() or ()
        self.trailers: Headers = []

    def single(self, name: str) -> str | None:
        """A key of the metadata that may stand once."""
        found = [value for key, value in self.metadata if key == name]
        if len(found) > 1 or not all(isinstance(value, str) for value in found):
            raise MalformedRequestError(f"the metadata {name} must stand once, in printable ASCII")
        return found[0] if found else None


class GrpcServer:
    """gRPC at a port of its own. To be used on one event loop.

    Args:
        config: host, port and TLS.
        app: pages and models.
        admission: tells callers apart, by the metadata `authorization`, and keeps out who comes too often.
        held: what bodies take, those of HTTP too.

    Attributes:
        address: "host:port" once it listens.
        in_flight: calls that are being answered.
        tracing: see `garrison.server.tracing`; None for no traces.
    """

    def __init__(self, config: ServerConfig, app: App, admission: Admission, held: HeldBytes) -> None:
        self._config, self._app, self._admission, self._held = config, app, admission, held
        if config.tls_client_names:
            raise ConfigError(
                "certificates of clients name no callers over gRPC: leave --grpc-port or server.tls_client_names out"
            )
        self._awaited = HeldBytes(app.limits.grpc_requests)
        self._certificates = certificates(config)
        self._server: Any = None
        self._keeper: asyncio.Task[None] | None = None
        self._stopping = False
        self.address = ""
        self.in_flight = 0
        self.tracing: Any = None

    @property
    def _limits(self) -> Limits:
        """As they are now: they may be read again (`garrison.server.reload`). Those in `_options` stay as they were at the start."""
        return self._app.limits

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the port cannot be had.
        """
        asyncio.get_running_loop().set_exception_handler(_without_paths)
        port = self._config.grpc_port or 0
        try:
            await self._begin(port)
        except ConfigError as error:
            raise ConfigError(f"{error}{_why_not(self._config.host, port)}") from error
        self._keeper = asyncio.ensure_future(self._keep())

    async def stop(self, seconds: float) -> None:
        self._stopping = True
        if self._server is not None:
            await self._server.stop(seconds)
        if self._keeper is not None:
            while not self._keeper.done():  # another one may have begun meanwhile
                await self._server.stop(0)
                await asyncio.wait([self._keeper], timeout=_AGAIN_SECONDS)
            await self._keeper  # ends with the server; to cancel it would cancel the server's own wait
            self._keeper = None
        self._server = None

    async def _begin(self, port: int) -> None:
        server = grpc.aio.server(options=self._options(), maximum_concurrent_rpcs=self._limits.grpc_requests)
        server.add_generic_rpc_handlers(
            (self._handlers(SERVICE, self._methods()), self._handlers(HEALTH, {"Check": self._check}))
        )
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        try:
            port = self._listen(server, f"{host}:{port}")
        except RuntimeError as error:
            raise ConfigError(f"cannot listen at {host}:{port}: choose another --grpc-port") from error
        await server.start()
        self._server = server
        self.address = f"{host}:{port}"

    async def _keep(self) -> None:
        """Begin another server where grpcio's has ended by itself, as it does for all when one call's path is no UTF-8."""
        port = int(self.address.rpartition(":")[2])
        while True:
            # A call that is kept open would put its end off: so it is asked now and then whether it has failed.
            looked = await asyncio.gather(self._server.wait_for_termination(_LOOK_SECONDS), return_exceptions=True)
            ended: object = looked[0]
            if self._stopping:
                return
            if ended is True:  # it has not
                continue
            logger.error("the gRPC server has ended by itself (%s); another one begins", type(ended).__name__)
            await self._server.stop(0)  # gives back what a server that fails keeps: 6 KiB, and its calls
            begun = False
            while not begun and not self._stopping:
                try:
                    await self._begin(port)
                    begun = True
                except ConfigError:
                    await asyncio.sleep(_AGAIN_SECONDS)

    def _listen(self, server: Any, wanted: str) -> int:
        files = self._certificates
        if files is None:
            return int(server.add_insecure_port(wanted))
        clients = None if files.clients is None else files.clients.read_bytes()
        pair = files.key.read_bytes(), files.chain.read_bytes()
        return int(server.add_secure_port(wanted, grpc.ssl_server_credentials([pair], clients, clients is not None)))

    def _options(self) -> list[tuple[str, int]]:
        limits = self._limits
        return [
            ("grpc.so_reuseport", 0),  # nobody else can take calls at the same port
            ("grpc.max_receive_message_length", limits.grpc_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", _METADATA_BYTES),
            ("grpc.max_concurrent_streams", limits.grpc_requests),
            ("grpc.server_handshake_timeout_ms", int(limits.header_read_seconds * 1000)),
            ("grpc.max_connection_idle_ms", _IDLE_SECONDS * 1000),
            ("grpc.keepalive_time_ms", _PING_SECONDS * 1000),
            ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_SECONDS * 1000),
            ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
        ]

    def _methods(self) -> dict[str, Work]:
        return {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "RepositoryIndex": self._index,
            "ModelInfer": self._infer,
        }

    def _handlers(self, service: str, methods: dict[str, Work]) -> Any:
        # Taken as streams, which on the wire are the same: so the message is read when the caller is known, and for no longer than it may take.
        made = {name: grpc.stream_unary_rpc_method_handler(self._handler(work)) for name, work in methods.items()}
        return grpc.method_handlers_generic_handler(service, made)

    def _handler(self, work: Work) -> Any:
        async def handle(_: Any, context: Context) -> bytes:
            self.in_flight += 1
            try:
                return await self._answer(work, context)
            finally:
                self.in_flight -= 1

        return handle

    async def _answer(self, work: Work, context: Context) -> bytes:
        call = _Call(context)
        try:
            found = await work(call)
            if call.trailers:
                context.set_trailing_metadata(tuple(call.trailers))
            return found
        except _RefusedError as refused:
            code, told = refused.code, refused.detail
            call.trailers += refused.headers
        except GarrisonError as error:
            code, told = error.code, str(error)
            self._app.count_refused(code)
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("a call failed")
            code, told = INTERNAL, ""
        code, told = shown(code, told)
        trailers = dict(pair for pair in extra_headers(code) if pair[0] in _TOLD) | dict(call.trailers)
        await context.abort(status_of(code), told, (*trailers.items(), (CODE_KEY, code)))
        return b""

    # Pages -----------------------------------------------------------------------------------------------------------

    async def _check(self, call: _Call) -> bytes:
        await self._read(call)
        return write_health(serving=self._page(call, "/v2/health/ready").status == _OK)

    async def _live(self, call: _Call) -> bytes:
        await self._read(call)
        return write_flag(value=True)

    async def _ready(self, call: _Call) -> bytes:
        await self._read(call)
        return write_flag(value=self._page(call, "/v2/health/ready").status == _OK)

    async def _server_metadata(self, call: _Call) -> bytes:
        await self._read(call)
        return write_server(self._page(call, "/v2"))

    async def _model_ready(self, call: _Call) -> bytes:
        self._identify(call)
        path = await self._model_path(call)
        try:
            ready = self._page(call, f"{path}/ready").status == _OK
        except NotFoundError:
            ready = False
        return write_flag(value=ready)

    async def _model_metadata(self, call: _Call) -> bytes:
        self._identify(call)
        return write_model(self._page(call, await self._model_path(call)))

    async def _index(self, call: _Call) -> bytes:
        self._identify(call)
        await self._read(call)
        return write_index(self._page(call, "/v2/repository/index"))

    def _page(self, call: _Call, path: str) -> Answer:
        page = self._route(call, path).page_for(call.who.name, call.who.scopes)
        if page is None:
            raise self._app.why_not_found(path, call.who.scopes)
        return page()

    def _route(self, call: _Call, path: str) -> Route:
        route = self._app.route(path)
        if route is None:
            raise self._app.why_not_found(path, call.who.scopes)
        self._app.allow(route, call.who.scopes, path)
        return route

    async def _model_path(self, call: _Call) -> str:
        await self._read(call)
        return _path(*read_names(call.body, self._limits))

    # Inference -------------------------------------------------------------------------------------------------------

    async def _infer(self, call: _Call) -> bytes:
        self._identify(call)
        left = call.context.time_remaining()
        deadline = NEVER if left is None else time.monotonic() + left
        await self._read(call)
        caller = call.who.name
        self._held.take(caller, len(call.body))
        try:
            path = f"{_path(*model_of(call.body, self._limits))}/infer"
            model = self._route(call, path).model
            if model is None:
                raise self._app.why_not_found(path, call.who.scopes)
            away = self._admission.turned_away(caller, model)
            if away is not None:
                self._app.count_refused(away.code)
                raise _RefusedError(*away)
            if self.tracing is None:
                return await self._asked(call, model, deadline)
            parents = [value for key, value in call.metadata if key == "traceparent" and isinstance(value, str)]
            found: bytes = await self.tracing.around_call(parents, model, self._asked(call, model, deadline))
            return found
        finally:
            self._held.give_back(caller, len(call.body))

    async def _asked(self, call: _Call, model: Model, deadline: float) -> bytes:
        work = None if model.card.work is None else call.single(WORK_HEADER)
        nonce = call.single(NONCE_HEADER)
        question = read_message(model, call.who.name, call.body, GRPC, nonce, self._limits, deadline, work)
        reply = await model.batcher.submit(question)
        call.trailers += rate_limits(model, question, reply)
        if reply.code:
            raise _RefusedError(reply.code, reply.detail, [])
        if reply.json_bytes != GRPC:
            raise GarrisonError("a call was answered in another form")
        call.trailers.append(proof_header(reply))
        return reply.body

    def _identify(self, call: _Call) -> None:
        call.who = self._admission.identify(call.single(AUTHORIZATION), peer_of(call.context.peer()))

    async def _read(self, call: _Call) -> None:
        """The message. A caller, or an address where nobody is known, may keep the server waiting for as many as are left for others: calls are few."""
        seconds = self._limits.body_read_seconds
        who = call.who.name or peer_of(call.context.peer()).rpartition(":")[0]
        self._awaited.take(who, 1)
        try:
            async with asyncio.timeout(seconds):
                found = await call.context.read()
        except TimeoutError as error:
            raise SlowRequestError(f"the message did not arrive within {seconds:g} seconds") from error
        finally:
            self._awaited.give_back(who, 1)
        if not isinstance(found, bytes):
            raise MalformedRequestError("expected one message, found none")
        call.body = found


def peer_of(peer: str) -> str:
    """The client's "address:port" of what gRPC calls it: "ipv4:127.0.0.1:5000", "ipv6:%5B::1%5D:5000"."""
    return unquote(peer.partition(":")[2])


def _path(name: str, version: str) -> str:
    if "/" in name or "/" in version:
        raise MalformedRequestError("a model's name and version hold no slash")
    return f"/v2/models/{name}/versions/{version}" if version else f"/v2/models/{name}"


def _why_not(host: str, port: int) -> str:
    """What grpc does not say of a port that cannot be had, found by trying; "" where it can be had by now."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return ""
    except OSError as error:
        return f" ({os.strerror(error.errno) if error.errno else error})"


def _without_paths(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio writes down of failed tasks, but for the one with a client's path in it; that it ended the server is told elsewhere."""
    error = context.get("exception")
    if (
        not isinstance(error, UnicodeDecodeError)
        or "_cygrpc" not in traceback.extract_tb(error.__traceback__)[-1].filename
    ):
        loop.default_exception_handler(context)
