"""What an endpoint sends, held back until it is whole, and what leaves in its place."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn

from garrison.asgi.forms import Asked, Form
from garrison.asgi.guard import AppGuard, Asking, TurnedDownError
from garrison.asgi.routes import POST
from garrison.errors import GarrisonError, MethodError, UnavailableError
from garrison.limits import Limits
from garrison.protocol.http_status import INTERNAL
from garrison.server.http_errors import Answer, answer_of, error_answer

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_GOOD, _FAULT, _SERVER_FAULT = 200, 400, 500
_MOST_ERROR_BYTES = 64 * 1024
_BODY_HEADERS = frozenset(
    {
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"transfer-encoding",
        b"etag",
        b"last-modified",
        b"digest",
    }
) | {
    b"content-md5",
    b"content-digest",
    b"repr-digest",
    b"content-range",
    b"accept-ranges",
    b"inference-header-content-length",
    b"ratelimit",
    b"ratelimit-policy",
}
"""Of the endpoint's answer: they describe what does not leave, or what is ours to tell."""


class CutError(OSError):
    """Told to an endpoint that goes on sending after its answer was cut; servers tell so that a client has gone."""


class Exchange:
    """What the endpoint sends, held back until it is whole. `send` is given to the app in the place of the server's own.

    Attributes:
        cut: whether the answer was too long, or begun twice, and the endpoint has been told to stop.
    """

    def __init__(self, guard: AppGuard, form: Form, asked: Asked, asking: Asking, send: Send, limits: Limits) -> None:
        self._guard, self._form, self._asked, self._asking = guard, form, asked, asking
        self._send, self._most = send, limits.request_body_bytes
        self._status, self._headers = 0, [(b"", b"")]
        self._parts: list[bytes] = []
        self._length = 0
        self._done = False
        self.cut = False

    async def send(self, message: Message) -> None:
        if self.cut:
            raise CutError("the answer was cut")
        if self._done:
            return
        if message["type"] == "http.response.start":
            if self._status:  # what was sent under the first would leave under the second
                await self._cut("the endpoint began a second answer")
            self._status = message["status"]
            self._headers = [(bytes(k).lower(), bytes(v)) for k, v in message.get("headers", ())]
        elif message["type"] == "http.response.body":
            self._length += len(message.get("body", b""))
            if self._length > self._most:
                await self._cut(f"the endpoint's answer is longer than {self._most} bytes")
            self._parts.append(bytes(message.get("body", b"")))
            if not message.get(
                "more_body", False
            ):  # now, and not when the app returns: it may have work to do in the background
                await self._finish(*await self._answer())

    async def end(self) -> None:
        """The app has returned."""
        if not self._done:
            await self._finish(_failed("the endpoint ended without a whole answer"), [])

    async def _cut(self, why: str) -> NoReturn:
        self._parts.clear()
        self.cut = True
        await self._finish(_failed(why), [])
        raise CutError(why)

    async def _finish(self, answer: Answer, headers: Headers) -> None:
        self._done = True
        await send_answer(self._send, answer, headers)

    async def _answer(self) -> tuple[Answer, Headers]:
        body, status = b"".join(self._parts), self._status
        if _FAULT <= status < _SERVER_FAULT:
            return self._fault(body)
        if status != _GOOD:
            if status >= _SERVER_FAULT:
                return _with_status(error_answer(INTERNAL, ""), status), []
            return _failed(f"the endpoint answered with status {status}; a guarded one answers 200"), []
        try:
            # 6 read its answer
            told = self._form.told(self._asked, dict(self._headers), body)
            # 7 ANSWER, RELEASE, RECORD; charge
            released = await self._guard.answer(self._asking, told.values)
            # 8 what was released
            written = self._form.write(self._asked, told, released)
        except TurnedDownError as error:
            return error_of(error), []
        except Exception as error:  # whatever it is, the endpoint's answer must not leave
            logger.exception("a guarded endpoint's answer was held back")
            return error_answer(error.code if isinstance(error, UnavailableError) else INTERNAL, ""), []
        kept = [(name, value) for name, value in self._headers if name not in _BODY_HEADERS]
        return Answer(_GOOD, self._guard.rate_limits(self._asking), written.body), [*kept, *written.headers]

    def _fault(self, body: bytes) -> tuple[Answer, Headers]:
        """The endpoint finds fault with the request. That is the app's own message, and no answer of the model."""
        if len(body) > _MOST_ERROR_BYTES:
            return _failed(f"the endpoint's error message is longer than {_MOST_ERROR_BYTES} bytes"), []
        return Answer(self._status, [], body), [pair for pair in self._headers if pair[0] != b"content-length"]


def _with_status(answer: Answer, status: int) -> Answer:
    return Answer(status, answer.headers, answer.body)


def _failed(why: str) -> Answer:
    logger.error("a guarded endpoint's answer was held back: %s", why)
    return error_answer(INTERNAL, "")


def error_of(error: Exception) -> Answer:
    if isinstance(error, TurnedDownError):
        return error_answer(error.told, str(error), error.headers)
    if isinstance(error, MethodError):
        return error_answer(error.code, str(error), [("allow", POST)])
    answer = answer_of(error) if isinstance(error, GarrisonError) else error_answer(INTERNAL, "")
    if answer.status >= _SERVER_FAULT:
        logger.error("a guarded request failed, and was not answered", exc_info=error)
    return answer


async def send_answer(send: Send, answer: Answer, more: Headers | None = None) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    headers += more or []
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
