"""Errors and documents as HTTP responses.

Every error's body is `{"error": "what happened", "code": "request.input"}`. A code that is not in the table (`garrison.protocol.http_status`) is a 500, and its
message stays here.
"""

from __future__ import annotations

import msgspec

from garrison.errors import (
    AuthenticationError,
    GarrisonError,
    LimitError,
    SlowRequestError,
    ThrottledError,
    UnavailableError,
)
from garrison.protocol.http_status import INTERNAL, STATUS

Headers = list[tuple[str, str]]

_JSON = ("content-type", "application/json")
_CLOSE = ("connection", "close")
_EXTRA: dict[str, Headers] = {
    AuthenticationError.code: [("www-authenticate", "Bearer")],
    UnavailableError.code: [("retry-after", "1")],
    ThrottledError.code: [("retry-after", "60")],  # at the latest then
    # What is left of such a request's body is not read, so the connection cannot be used again.
    LimitError.code: [_CLOSE],
    SlowRequestError.code: [_CLOSE],
}


class Answer(msgspec.Struct, frozen=True):
    """A whole HTTP response."""

    status: int
    headers: Headers
    body: bytes


class _ErrorBody(msgspec.Struct):
    error: str
    code: str


def json_answer(value: object, status: int = 200, headers: Headers | None = None) -> Answer:
    return Answer(status, [_JSON, *(headers or [])], msgspec.json.encode(value))


def shown(code: str, message: str) -> tuple[str, str]:
    """What a client is told. The message of what is our own fault, or not in the table, is not shown."""
    if code not in STATUS or code == INTERNAL:
        return INTERNAL, "the service failed on this request"
    return code, message


def extra_headers(code: str) -> Headers:
    """Headers that go with an error."""
    return _EXTRA.get(code, [])


def error_answer(code: str, message: str, headers: Headers | None = None) -> Answer:
    """The response for an error code."""
    code, message = shown(code, message)
    return json_answer(_ErrorBody(message, code), STATUS[code], [*extra_headers(code), *(headers or [])])


def answer_of(error: GarrisonError) -> Answer:
    return error_answer(error.code, str(error))
