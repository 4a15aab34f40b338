"""Conversations as generators, without a transport.

A conversation yields a `Request`, a `Pause` or `Work` and is sent what came back: a `Response`, `Unreachable`, None after a pause, or what came of the work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from garrison.errors import ConfigError, ServiceError, TooFastError, UnavailableError
from garrison.protocol.http_messages import Request, Response
from garrison.protocol.http_status import ERRORS

_OK, _TOO_MANY, _UNAVAILABLE = 200, 429, 503
_LEFT = re.compile(r'"([a-z-]{1,32})";r=(\d{1,18})')
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
_LONGEST_WAIT_SECONDS, _MOST_DIGITS = 30, 6
"""A server may ask for so much patience between two attempts."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The request did not reach the server."""

    reason: str


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Something that keeps a processor busy, and nothing else; what comes of it is sent back."""

    do: Callable[[], str]


Result = TypeVar("Result")
Talk = Generator[Request | Pause | Work, Response | Unreachable | str | None, Result]


class _ErrorBody(msgspec.Struct):
    error: str
    code: str = ""


def bearer(api_key: str | None) -> dict[str, str]:
    """The header that shows a key.

    Raises:
        ConfigError: the key cannot stand in a header. The message does not repeat it.
    """
    if api_key is None:
        return {}
    if not (api_key and api_key.isascii() and api_key.isprintable()) or " " in api_key:
        raise ConfigError(
            "the API key must be printable ASCII without spaces or line ends; is it whole, and nothing else?"
        )
    return {"authorization": f"Bearer {api_key}"}


def exchange(request: Request, attempts: int) -> Talk[Response]:
    """One request, repeated while the server cannot be reached or says when to come again. Nothing is charged in either case.

    Raises:
        UnavailableError: after so many attempts.
        GarrisonError: what the response tells of.
    """
    pause = _FIRST_PAUSE_SECONDS
    for attempt in range(1, attempts + 1):
        found = yield request
        asked = _retry_after(found) if isinstance(found, Response) else 0.0
        if isinstance(found, Response) and asked is None:
            return _checked(found)
        if attempt == attempts:
            break
        yield Pause(max(pause, asked or 0.0))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    if isinstance(found, Response):
        return _checked(found)
    reason = found.reason if isinstance(found, Unreachable) else "no answer"
    raise UnavailableError(
        f"the server cannot be reached after {attempts} attempts: {reason}; does it run, at this address?"
    )


def _retry_after(response: Response) -> float | None:
    """Seconds to wait before the request is made again; None where it must not be.

    Only a 503 with `Retry-After`, and the refusal of who comes too fast, say that nothing was computed, and so nothing charged: a 503 without it may come
    from a proxy that lost an answer. Who asks for more patience than is reasonable gets an error to the caller instead.
    """
    if response.status != _UNAVAILABLE and not _came_too_fast(response):
        return None
    text = response.headers.get("retry-after", "")
    seconds = int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None
    return None if seconds is None or seconds > _LONGEST_WAIT_SECONDS else float(seconds)


def _came_too_fast(response: Response) -> bool:
    """Other codes with the same status say that a budget is used up, or that a detector rang: there is nothing to gain by coming again."""
    if response.status != _TOO_MANY:
        return False
    try:
        return msgspec.json.decode(response.body, type=_ErrorBody).code == TooFastError.code
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _checked(response: Response) -> Response:
    """The response, or the error that it tells of."""
    if response.status == _OK:
        return response
    try:
        body = msgspec.json.decode(response.body, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ServiceError(f"the server answered with status {response.status} and no explanation") from error
    kind = ERRORS.get(body.code, ServiceError)
    raise kind(body.error if kind is not ServiceError else f"{body.error} (status {response.status})")


def left_of(response: Response) -> dict[str, int]:
    """What a caller has left by the header `RateLimit`; what cannot be read is left out."""
    return {name: int(left) for name, left in _LEFT.findall(response.headers.get("ratelimit", ""))}


def decode(body: bytes, kind: type[Result], what: str) -> Result:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ServiceError(f"{what} cannot be read: {error}") from error
