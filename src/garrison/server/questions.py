"""Requests for the queue out of headers and a body, and the answers to them as responses. Nothing of a body is read."""

from __future__ import annotations

import re

import msgspec

from garrison.errors import BudgetExhaustedError, LimitError, MalformedRequestError
from garrison.limits import Limits
from garrison.protocol.messages import Reply
from garrison.protocol.oip import ALL_JSON
from garrison.protocol.sealed import CONTENT_TYPE as SEALED_TYPE
from garrison.server.hosting import Model
from garrison.server.http_errors import Answer, Headers, error_answer
from garrison.server.waiting import NEVER, Waiting

LENGTH_HEADER = "inference-header-content-length"
PROOF_HEADER = "garrison-proof"
NONCE_HEADER = "garrison-nonce"
TIMEOUT_HEADER = "request-timeout"
WORK_HEADER = "garrison-work"

_MOST_DIGITS = 15
_MOST_WORK = 64
_JSON_TYPE = ("content-type", "application/json")
_BINARY_TYPE = ("content-type", "application/octet-stream")
_SECONDS = re.compile(r"\d{1,9}(\.\d{1,9})?")


def read_deadline(timeout: str | None, arrived: float) -> float:
    """When a client gives up, from the seconds that its header names.

    Args:
        timeout: value of `TIMEOUT_HEADER`.
        arrived: when the request's head was here, by `time.monotonic`.

    Raises:
        MalformedRequestError: it is no number of seconds.
    """
    if timeout is None:
        return NEVER
    if not _SECONDS.fullmatch(timeout):
        raise MalformedRequestError(
            f"the header {TIMEOUT_HEADER} must be seconds, such as 2 or 0.25; found {timeout[:32]!r}"
        )
    return arrived + float(timeout)


def read_sealed(model: Model, caller: str, body: bytes, length: str | None, deadline: float = NEVER) -> Waiting:
    """A sealed inference request, ready for the queue. What is in it, nobody here can tell.

    Raises:
        MalformedRequestError: it says outside what belongs inside.
    """
    if length is not None:
        raise MalformedRequestError(f"a sealed request has no header {LENGTH_HEADER}: the length stands inside")
    return Waiting(caller, body, ALL_JSON, "", model.sealed_cost(len(body)), sealed=True, deadline=deadline)


def is_sealed(content_type: str | None) -> bool:
    """Whether a request's body is a sealed envelope."""
    return content_type is not None and content_type.partition(";")[0].strip().lower() == SEALED_TYPE


def rate_limits(model: Model, request: Waiting, reply: Reply) -> Headers:
    """The headers that say what the caller has left; none where the model has no budget."""
    return model.rate_limits.headers(
        request.left, refused=reply.code == BudgetExhaustedError.code, caller=request.caller
    )


def write_sealed(reply: Reply, more: Headers) -> Answer:
    """The response to a sealed request: an answer or a refusal, which only the client can tell apart.

    Args:
        more: further headers.
    """
    if reply.code:
        return error_answer(reply.code, reply.detail, more)
    return Answer(200, [("content-type", SEALED_TYPE), *more], reply.body)


def read_question(
    model: Model,
    caller: str,
    body: bytes,
    length: str | None,
    nonce: str | None,
    limits: Limits,
    deadline: float = NEVER,
    work: str | None = None,
) -> Waiting:
    """An inference request, ready for the queue.

    Args:
        length, nonce, work: the headers of these names.

    Raises:
        MalformedRequestError, LimitError: a header makes no sense.
    """
    json_bytes = ALL_JSON
    if length is not None:
        if not (length.isascii() and length.isdigit() and len(length) <= _MOST_DIGITS):
            raise MalformedRequestError(f"the header {LENGTH_HEADER} must be a number of bytes, found {length[:32]!r}")
        json_bytes = int(length)
    return read_message(model, caller, body, json_bytes, nonce, limits, deadline, work)


def read_message(
    model: Model,
    caller: str,
    body: bytes,
    json_bytes: int,
    nonce: str | None,
    limits: Limits,
    deadline: float = NEVER,
    work: str | None = None,
) -> Waiting:
    """As `read_question`, where the length of the JSON part is known, or there is none (gRPC)."""
    if nonce is None:
        nonce = ""
    elif len(nonce) > limits.string_bytes:
        raise LimitError(f"the header {NONCE_HEADER} may have {limits.string_bytes} bytes, found {len(nonce)}")
    elif not (nonce.isascii() and nonce.isprintable()):
        raise MalformedRequestError(f"the header {NONCE_HEADER} must be printable ASCII")
    if work is not None and len(work) > _MOST_WORK:
        raise LimitError(f"the header {WORK_HEADER} may have {_MOST_WORK} characters, found {len(work)}")
    cost = model.cost(len(body), json_bytes)
    return Waiting(caller, body, json_bytes, nonce, cost, deadline=deadline, work=work or "")


def write_answer(reply: Reply, more: Headers) -> Answer:
    """The response for what the enclave replied.

    Args:
        more: further headers.
    """
    if reply.code:
        return error_answer(reply.code, reply.detail, more)
    headers: Headers = [*more, proof_header(reply)]
    if reply.json_bytes == ALL_JSON:
        headers.append(_JSON_TYPE)
    else:
        headers += [_BINARY_TYPE, (LENGTH_HEADER, str(reply.json_bytes))]
    return Answer(200, headers, reply.body)


def proof_header(reply: Reply) -> tuple[str, str]:
    """The proof of an answer, as a header or as metadata."""
    return PROOF_HEADER, msgspec.to_builtins(reply.proof)  # base64, in half of the time that `binascii` takes
