"""Opens sealed requests and seals their answers, so that the rest of the service sees plain ones alone.

Invariants: what a sealed request says leaves only under the key that its client chose, refusals included; the host's outcome
of a sealed request is "ok" or "refused", and the rows to be charged. How many rows a defense changed, and why a request
was refused, would tell the host what the input looked like, so they are left out. Each row counts as one that the caller had not asked before: a
host that learned of repeats could ask rows that it guesses in the caller's name, and see which of them were asked.

What cannot be opened at all is refused in the open: there is no key for an answer, and nothing to be hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from garrison.enclave.keys import KeyRing
from garrison.errors import RequestError, SealedRequestError, SealingRequiredError
from garrison.limits import Limits
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.protocol.sealed import AnswerHead, RequestHead, read_request, write_answer

OK, REFUSED = "ok", "refused"
_ADDRESS = "ip:"


@dataclass(frozen=True, slots=True)
class Letter:
    """A request as the service reads it.

    Attributes:
        ask: plain.
        answer_key: what to seal the answer with; None for a request that came in the open.
        refused: why the letter may not be answered, though it opened.
    """

    ask: Ask
    answer_key: bytes | None = None
    refused: RequestError | None = None


class Mail:
    """The door of a service.

    Args:
        keys: what requests are sealed to; None where the service runs without an enclave.
        limits: `sealed_clock_seconds` and `string_bytes` count here.
        sealing_required: the owner's demand.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        keys: KeyRing | None,
        limits: Limits,
        *,
        sealing_required: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._limits = limits
        self._required = sealing_required
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
        head, body = read_request(self._keys.open(ask.body))
        plain = Ask(ask.caller, _least(ask), body, head.json_bytes, head.nonce, work=head.work)
        return Letter(plain, head.answer_key, self._wrong(head, ask.caller))

    def close(self, letter: Letter, reply: Reply) -> Reply:
        """The reply as the host may see it."""
        if letter.answer_key is None:
            return reply
        head = AnswerHead(reply.code, reply.detail, reply.json_bytes, reply.proof)
        rows = reply.outcome.rows
        outcome = Outcome(OK if reply.outcome.code == OK else REFUSED, rows, distinct=rows)
        return Reply("", "", write_answer(letter.answer_key, head, reply.body), -1, b"", outcome)

    def _wrong(self, head: RequestHead, caller: str) -> RequestError | None:
        expected = "" if caller.startswith(_ADDRESS) else caller
        if head.caller != expected:
            return SealedRequestError(
                f"sealed by {head.caller[:64] or 'nobody'!r}, and handed in for {expected or 'nobody'!r}: "
                "the key's id inside must be that of the key that is shown outside"
            )
        if abs(self._clock() - head.time) > self._limits.sealed_clock_seconds:
            return SealedRequestError(
                f"the time inside differs from the enclave's by more than {self._limits.sealed_clock_seconds:g} s"
            )
        if len(head.nonce) > self._limits.string_bytes or not (head.nonce.isascii() and head.nonce.isprintable()):
            return SealedRequestError(f"the nonce must be printable ASCII of at most {self._limits.string_bytes} bytes")
        return None


def _least(ask: Ask) -> int:
    """Rows that the caller may still ask where each counts as a new one; -1 for no limit."""
    limits = [left for left in (ask.remaining, ask.fresh) if left >= 0]
    return min(limits, default=-1)
