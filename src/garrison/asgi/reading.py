"""Reads a request's body, whole, within limits of size and time.

The time is watched from one timer for all bodies that are being read: one a request would cost more than the reading of it does where the body is
there already, as it nearly always is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from garrison.errors import GarrisonError, LimitError, MalformedRequestError, SlowRequestError
from garrison.limits import Limits

_MOST_SWEEP_SECONDS = 0.5

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class ClientGoneError(Exception):
    """Nobody is there to read an answer."""


class BodyReader:
    """Reads bodies.

    Args:
        limits: `request_body_bytes` and `body_read_seconds` count here. A body that takes too long is noticed within half of that time, and
            half a second at most, after it.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sweep_seconds = min(_MOST_SWEEP_SECONDS, limits.body_read_seconds / 2)
        self._reading: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The body.

        Raises:
            LimitError: it is too long.
            MalformedRequestError: it is compressed.
            SlowRequestError: it does not arrive in time.
            ClientGoneError: it never will.
        """
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise MalformedRequestError("compressed bodies are not read; send this one as it is")
        most = self._limits.request_body_bytes
        said = headers.get(b"content-length", b"")
        if said.isdigit() and int(said) > most:
            raise _too_long(most)
        task = asyncio.current_task()
        if task is None:
            raise GarrisonError("a request is answered outside a task")
        before = task.cancelling()
        self._reading[task] = time.monotonic() + self._limits.body_read_seconds
        if self._timer is None or self._loop is not task.get_loop():
            self._watch(task)
        try:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientGoneError
            body: bytes = message.get("body", b"")
            if message.get("more_body", False):
                body = await _whole(receive, body, most)
            if len(body) > most:
                raise _too_long(most)
            return body
        except asyncio.CancelledError as error:
            if task not in self._overdue or task.uncancel() > before:
                raise
            seconds = self._limits.body_read_seconds
            raise SlowRequestError(f"the body did not arrive within {seconds:g} seconds") from error
        finally:
            self._reading.pop(task, None)
            self._overdue.discard(task)

    def _watch(self, task: asyncio.Task[Any]) -> None:
        """Look at all bodies now and then, from the first on; anew where an app is started again, on another loop."""
        loop = task.get_loop()
        if self._loop is not loop:
            self._loop, self._reading = loop, {task: self._reading[task]}
        self._timer = loop.call_later(self._sweep_seconds, self._sweep)

    def _sweep(self) -> None:
        now = time.monotonic()
        for task in [task for task, deadline in self._reading.items() if deadline <= now]:
            del self._reading[task]
            self._overdue.add(task)
            task.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._sweep_seconds, self._sweep) if self._reading else None


async def _whole(receive: Receive, first: bytes, most: int) -> bytes:
    """A body that comes in several parts; no more of it is read than shows that it is too long."""
    parts, length, more = [first], len(first), True
    while length <= most and more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        more = message.get("more_body", False)
    return b"".join(parts)


def _too_long(most: int) -> LimitError:
    return LimitError(f"a body may have {most} bytes")
