"""The middleware: pure ASGI, in front of any app.

A request to a guarded path goes through these steps:

    1  method and caller
    2  the body, whole and within limits
    3  read it; what the app gets is written anew
    4  ADMIT, INSPECT
    5  the app's own endpoint computes; nothing of what it sends leaves
    6  read its answer
    7  ANSWER, RELEASE, RECORD; charge
    8  send what was released

Invariants: a guarded path takes POST alone, and no websocket; whatever fails, the client gets an error of ours and nothing of the
endpoint's answer; a mistake in the settings stops the app from starting, or, where a server starts apps without saying so, from
answering anything at all.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from garrison.asgi.exchange import App, Exchange, Message, Receive, Scope, Send, error_of, send_answer
from garrison.asgi.fields import Fields, why_not
from garrison.asgi.forms import Asked, Form, JsonForm, ProtocolForm, Question
from garrison.asgi.guard import AppGuard
from garrison.asgi.reading import BodyReader, ClientGoneError
from garrison.asgi.routes import POST, app_behind, check_routes, route_path
from garrison.errors import AuthenticationError, ConfigError, MalformedRequestError, MethodError
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.server.auth import by_address
from garrison.server.http_errors import error_answer

logger = logging.getLogger(__name__)

CallerOf = Callable[[Scope], Awaitable[str | None] | str | None]

_CLIENT_HEADERS = frozenset(
    {b"accept-encoding", b"content-encoding", b"content-length", b"content-type", b"transfer-encoding", b"range"}
) | {b"inference-header-content-length"}
"""Not handed on: they describe a body that was written anew, or ask for an answer that could not be read."""


class Guarded:
    """Guards paths of an ASGI app.

    Args:
        app: the app behind; `add_middleware` gives it.
        bundle: folder of the sealed model (or of a guard alone); its guard counts, its f' misinforms.
        trust: files of public keys that may have signed the bundle.
        path: the path, or paths, to guard; exactly as in the app's routes, without parameters.
        inputs: where the input stands in the app's JSON: a field's name; names of single features, in the model's order; a field for
            each input of the model; or a function that makes arrays of the body. None: Open Inference Protocol bodies.
        output: the field (or tensor) of the endpoint's answer with *all* class probabilities, or real values. None: as the model's
            own output is called (`probabilities`, `values`, `scores`).
        label: a field that the guard adds to the answer, with the label of the first class.
        keep: further fields of the endpoint's answer that leave unchanged; all others are dropped.
        caller: who asks, from the ASGI scope; None or "" refuses with 401. Without it, callers are told apart by address.
        secret: file of the misinformation key; None for the one beside the bundle.
        state: folder where budgets are kept; None for the user's own state folder.
        tighten: by defense, what is to be tightened of the signed guard.
        callers: by caller, or "*" for all others, a stricter release policy, written as in `[callers.NAME]` of the settings:
            `{"*": {"release": "labels"}}`.
        limits: sizes, counts and times.

    Everything is checked at the app's start. Raises, there, what `garrison.asgi.guard.AppGuard` raises, and `ConfigError` for paths
    and fields that do not fit.
    """

    def __init__(
        self,
        app: App,
        *,
        bundle: str | Path,
        trust: str | Path | Sequence[str | Path],
        path: str | Sequence[str],
        inputs: Fields | None = None,
        output: str | None = None,
        label: str | None = None,
        keep: Sequence[str] = (),
        caller: CallerOf | None = None,
        secret: str | Path | None = None,
        state: str | Path | None = None,
        tighten: Mapping[str, Mapping[str, Any]] | None = None,
        callers: Mapping[str, Mapping[str, Any]] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._app = app
        self._paths = (path,) if isinstance(path, str) else tuple(path)
        self._guarded = frozenset(self._paths)
        self._bundle, self._secret, self._state = Path(bundle), _path(secret), _path(state)
        self._trust = [Path(trust)] if isinstance(trust, str | Path) else [Path(file) for file in trust]
        self._fields = (inputs, output, label, (keep,) if isinstance(keep, str) else tuple(keep))
        self._caller = caller
        self._tighten, self._callers, self._limits = dict(tighten or {}), dict(callers or {}), limits
        self._bodies = BodyReader(limits)
        self._guard: AppGuard | None = None
        self._form: Form | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._live(scope, receive, send)
            return
        if self._guard is None:
            self._start(scope.get("app"))
        if kind not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        path = route_path(scope)
        # A router takes "/predict\n" for "/predict". No honest path holds such a character, so none with one gets through.
        guarded, odd = path in self._guarded, not path.isprintable()
        if not guarded and not odd:
            await self._app(scope, receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif odd:
            await send_answer(send, error_answer("request.not_found", "nothing is here"))
        else:
            await self._serve(scope, receive, send)

    # Start -----------------------------------------------------------------------------------------------------------

    def _start(self, app: Any) -> None:
        """Load everything, and look whether the app is guarded as was meant."""
        if not self._paths or not all(path.startswith("/") and "{" not in path for path in self._paths):
            raise ConfigError(
                f"Guarded: path must name paths like '/predict', without parameters; found {self._paths!r}"
            )
        behind = app_behind(self._app)
        check_routes(app if behind is None else behind, self._paths)
        guard = AppGuard(
            self._bundle,
            self._trust,
            secret=self._secret,
            state=self._state,
            changes=self._tighten,
            callers=self._callers,
            limits=self._limits,
        )
        try:
            self._form = self._form_of(guard)
        except ConfigError:
            guard.close()
            raise
        self._guard = guard
        logger.info("the guard of %s, version %s, runs in numpy around %s", guard.name, guard.version, self._paths)

    def _form_of(self, guard: AppGuard) -> Form:
        inputs, given, label, keep = self._fields
        output = given or guard.answer_name
        if inputs is None:
            if label is not None or keep:
                raise ConfigError("Guarded: label and keep go with an app's own JSON; name its fields by inputs")
            return ProtocolForm(guard.facts, guard.name, guard.version, guard.released, output, self._limits)
        wrong = why_not(guard.facts, inputs, output, label, keep)
        if wrong:
            raise ConfigError(f"Guarded: {wrong}")
        return JsonForm(guard.facts, inputs, output, guard.answer_name, label, frozenset(keep), self._limits)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start before the app does, so that a mistake is an error at start-up; close after it."""
        first: list[Message] = [await receive()]
        try:
            if self._guard is None:
                self._start(scope.get("app"))
        except Exception as error:
            logger.exception("the guard cannot start")
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            return

        async def again() -> Message:
            return first.pop() if first else await receive()

        try:
            await self._app(scope, again, send)
        finally:
            if self._guard is not None:
                self._guard.close()
                self._guard = None  # an app that is started again loads it again

    # A request -------------------------------------------------------------------------------------------------------

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        guard, form = self._guard, self._form
        if guard is None or form is None:
            raise ConfigError("the guard has not been started")
        try:
            # 1 method and caller
            if scope["method"] != POST:
                raise MethodError(f"expected POST, found {scope['method'][:16]}")
            caller = _address_of(scope) if self._caller is None else await self._caller_of(scope, self._caller)
            # 2 the body
            headers, kept = _headers(scope["headers"])
            body = await self._bodies.read(headers, receive)
            # 3 read it
            asked = form.read(headers, body, caller)
            # 4 ADMIT, INSPECT
            asking = await guard.ask(asked.inputs, caller)
        except ClientGoneError:
            return
        except Exception as error:  # noqa: BLE001  whatever it is, nothing was computed
            await send_answer(send, error_of(error))
            return
        # 5 the app's own endpoint
        exchange = Exchange(guard, form, asked, asking, send, self._limits)
        try:
            await self._app(_inner_scope(scope, asked, caller, kept), _replay(asked.body, receive), exchange.send)
        except Exception:
            if not exchange.cut:
                raise
        await exchange.end()

    async def _caller_of(self, scope: Scope, caller: CallerOf) -> str:
        found = caller(scope)
        if inspect.isawaitable(found):
            found = await found
        if found is None or found == "":
            raise AuthenticationError("the caller is not known")
        if not isinstance(found, str) or len(found) > self._limits.string_bytes:
            raise TypeError("caller must give a short text, or None")
        return found


def _address_of(scope: Scope) -> str:
    client = scope.get("client")
    return by_address(str(client[0]) if client else "").name


def _headers(headers: Any) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """Headers by name, and those that are handed on. One that matters here and stands twice could be read in two ways.

    Raises:
        MalformedRequestError: such a one.
    """
    found: dict[bytes, bytes] = {}
    kept = []
    for name, value in headers:
        name = name.lower()
        if name not in _CLIENT_HEADERS:
            kept.append((name, value))
        elif name in found:
            raise MalformedRequestError(f"the header {name.decode('latin-1')} must stand once")
        found[name] = value
    return found, kept


def _inner_scope(scope: Scope, asked: Asked, caller: str, kept: list[tuple[bytes, bytes]]) -> Scope:
    headers = [*kept, *asked.headers, (b"content-length", b"%d" % len(asked.body))]
    question = Question(asked.inputs, caller)
    # No extensions: an answer that is sent as a file's path, or pushed, would go past the guard.
    return {**scope, "headers": headers, "extensions": {}, "garrison": question}


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
