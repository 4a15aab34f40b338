"""Gives waiting requests their replies, or tells them why there is none."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence

import msgspec

from garrison.errors import MalformedRequestError, UnavailableError
from garrison.protocol.http_status import INTERNAL
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.server.waiting import Waiting

logger = logging.getLogger(__name__)


def finish(batch: Sequence[Waiting], replies: Sequence[Reply]) -> None:
    """Each request gets its reply, where its client has not gone."""
    for request, reply in zip(batch, replies, strict=True):
        if not request.reply.done():
            request.reply.set_result(reply)


def hold_back(batch: Sequence[Waiting], why: str) -> None:
    """What was computed and could not be written down does not leave."""
    finish(batch, failed(batch, UnavailableError.code, f"{why}; try again"))


def failure(batch: Sequence[Waiting], error: Exception) -> list[Reply]:
    """What callers are told when nothing could be answered, or charged."""
    if isinstance(error, UnavailableError):  # the enclave has died or is being started anew
        return failed(batch, error.code, str(error))
    if isinstance(error, sqlite3.OperationalError):
        logger.error("the budgets cannot be read or written: %s", error)
        return failed(batch, UnavailableError.code, "the budgets cannot be kept just now; try again")
    logger.error("a batch of %d requests could not be answered or charged", len(batch), exc_info=error)
    return failed(batch)


def is_sendable(ask: Ask) -> bool:
    """Whether a request can be handed to an enclave: its words may hold what no UTF-8 can say, or a number be too long."""
    try:
        msgspec.msgpack.encode(ask)
    except (UnicodeEncodeError, OverflowError, TypeError, ValueError):
        return False
    return True


def unsendable() -> Reply:
    """What its caller is told."""
    code, told = MalformedRequestError.code, "a header of this request cannot be read"
    return Reply(code, told, b"", -1, b"", Outcome(code=code, rows=0))


def failed(batch: Sequence[Waiting], code: str = INTERNAL, detail: str = "") -> list[Reply]:
    """The same error for all."""
    return [Reply(code, detail, b"", -1, b"", Outcome(code=code, rows=0)) for _ in batch]
