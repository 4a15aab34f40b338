"""Opens sealed requests and seals their answers, so that the rest of the service sees plain ones alone.

Invariants: what a sealed request says leaves only under the key that its client chose, refusals included; the host's outcome
of a sealed request is "sealed", and the rows to be charged. Whether a guard refused it and why, and how many rows a defense changed, would tell the host what
the input looked like, so they are left out, and counted for a tally of many requests (`garrison.enclave.witness`). One thing it does learn: nothing is charged where a
request could not be read, or its input was not admitted. Each row counts as one that the caller had not asked before: a
host that learned of repeats could ask rows that it guesses in the caller's name, and see which of them were asked.

What cannot be opened at all is refused in the open: there is no key for an answer, and nothing to be hidden.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

import msgspec

from garrison.enclave.keys import KeyRing
from garrison.enclave.replies import error_reply
from garrison.enclave.sessions import ADDRESS, Sessions
from garrison.enclave.witness import SealedTally
from garrison.errors import RequestError, SealedRequestError, SealingRequiredError
from garrison.limits import Limits
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.protocol.sealed import AnswerHead, Grant, RequestHead, read_request, write_answer
from garrison.protocol.sealed_session import SessionHead, offer_bytes, within_session
from garrison.protocol.statement import receipt_of, statement_in

logger = logging.getLogger(__name__)

SEALED = "sealed"
_INTERNAL = "internal"
_NONCE_CHARACTERS = 22
"""128 random bits in base64."""
_RECEIPT_BYTES = 32


class Letter(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A request as the service reads it.

    Attributes:
        ask: plain.
        answer_key: what to seal the answer with; None for a request that came in the open.
        refused: why the letter may not be answered, though it opened.
        first: the request of which a session may come, as it came; None for none.
    """

    ask: Ask
    answer_key: bytes | None = None
    refused: RequestError | None = None
    first: First | None = None

    def __repr__(self) -> str:  # no key, and nothing of what was sealed
        return "Letter()"


class First(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A request that offered a session: whole, with the offer, and the name that its caller gave inside."""

    envelope: bytes
    offer: bytes
    name: str

    def __repr__(self) -> str:
        return "First()"


class Mail:
    """The door of a service.

    Args:
        keys: what requests are sealed to; None where the service runs without an enclave.
        sessions: those that have begun.
        limits: `sealed_clock_seconds` and `string_bytes` count here.
        sealing_required: the owner's demand.
        tally: where true outcomes are counted, since no single one is told; None for nowhere.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        keys: KeyRing | None,
        sessions: Sessions,
        limits: Limits,
        *,
        sealing_required: bool,
        tally: SealedTally | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._sessions = sessions
        self._limits = limits
        self._required = sealing_required
        self._tally = tally
        self._clock = clock

    @property
    def takes_plain(self) -> bool:
        """Whether a plain request needs no look here."""
        return not self._required

    def open(self, ask: Ask) -> Letter:
        """The request inside; a plain one as it is.

        Raises:
            SealingRequiredError: plain, and the owner demands sealed ones.
            SealedRequestError: it does not open, or this service has no enclave to open it in.
            StaleKeyError, ReplayError, UnavailableError: see `KeyRing.open`.
            StaleSessionError, ReplayError: see `Sessions.open`.
        """
        if not ask.sealed:
            if self._required:
                raise SealingRequiredError(
                    "the owner of this model demands sealed requests: use garrison.client with sealed=True, or "
                    "`garrison connect`"
                )
            return Letter(ask)
        if self._keys is None:
            raise SealedRequestError(
                "this service runs without an enclave (isolation none) and opens no sealed request"
            )
        if within_session(ask.body):
            later, body, key = self._sessions.open(ask.caller, ask.body)
            return Letter(_plain(ask, later, body), key, self._wrong(later))
        head, body = read_request(self._keys.open(ask.body))
        first = First(ask.body, head.offer, head.caller) if head.offer else None
        wrong = self._wrong_first(head, ask.caller, self._keys.suite) or self._wrong(head)
        return Letter(_plain(ask, head, body), head.answer_key, wrong, first)

    def close(self, letter: Letter, reply: Reply) -> Reply:
        """The reply as the host may see it. One that cannot be sealed is lost, with its rows; the others of its batch are not."""
        if letter.answer_key is None:
            return reply
        try:
            return self._sealed(letter, letter.answer_key, reply)
        except Exception:
            logger.exception("an answer could not be sealed; the others of its batch are told")
            rows = reply.outcome.rows
            return error_reply(_INTERNAL, "the service failed on this request", Outcome(SEALED, rows, distinct=rows))

    def _sealed(self, letter: Letter, key: bytes, reply: Reply) -> Reply:
        grant = None if letter.first is None or letter.refused is not None else self._grant(letter.ask, letter.first)
        head = AnswerHead(reply.code, reply.detail, reply.json_bytes, reply.proof, grant)
        rows = reply.outcome.rows
        if self._tally is not None:
            self._tally.count(reply.outcome)
        outcome = Outcome(SEALED, rows, distinct=rows, receipt=_receipt(letter, reply))
        return Reply("", "", write_answer(key, head, reply.body), -1, b"", outcome)

    def _grant(self, ask: Ask, first: First) -> Grant | None:
        if self._keys is None:
            return None
        ends = self._keys.ends(first.envelope)
        return self._sessions.grant(self._keys.suite, ask.caller, first.name, first.envelope, first.offer, ends)

    def _wrong_first(self, head: RequestHead, caller: str, suite: str) -> RequestError | None:
        expected = "" if caller.startswith(ADDRESS) else caller
        if head.caller != expected:
            return SealedRequestError(
                f"sealed by {head.caller[:64] or 'nobody'!r}, and handed in for {expected or 'nobody'!r}: "
                "the name inside must be the one that the server knows the caller by (a key's id, oidc:SUBJECT or cert:NAME; --caller, or Client(caller=...))"
            )
        if head.offer and len(head.offer) != offer_bytes(suite):
            return SealedRequestError(f"an offer of a session has {offer_bytes(suite)} bytes, found {len(head.offer)}")
        return None

    def _wrong(self, head: RequestHead | SessionHead) -> RequestError | None:
        if abs(self._clock() - head.time) > self._limits.sealed_clock_seconds:
            return SealedRequestError(
                f"the time inside differs from the enclave's by more than {self._limits.sealed_clock_seconds:g} s"
            )
        if len(head.nonce) > self._limits.string_bytes or not (head.nonce.isascii() and head.nonce.isprintable()):
            return SealedRequestError(f"the nonce must be printable ASCII of at most {self._limits.string_bytes} bytes")
        return None


def _plain(ask: Ask, head: RequestHead | SessionHead, body: bytes) -> Ask:
    """What was inside, with the rows that the caller may still ask where each counts as a new one; -1 for no limit."""
    left, fresh = ask.remaining, ask.fresh
    if fresh >= 0:
        left = min(left, fresh) if left >= 0 else fresh
    return Ask(ask.caller, left, body, head.json_bytes, head.nonce, work=head.work)


def _receipt(letter: Letter, reply: Reply) -> bytes:
    """A digest of what was signed, under a nonce that nobody guesses; where there is none, a number that looks like it, so that nobody can tell."""
    if reply.proof and len(letter.ask.nonce) >= _NONCE_CHARACTERS:
        return receipt_of(statement_in(reply.proof))
    return secrets.token_bytes(_RECEIPT_BYTES)
