"""Between a model's queue and the ledger: an answer leaves when its entry is on the disk, and not before.

To be used from the event loop alone. It waits for nothing: what is answered goes to the writer's thread, which numbers, hashes and writes it, and calls back. Entries of answers that
the enclave signed are encoded here, where the processor's caches hold what they tell: another thread takes twice as long. Where a body must be hashed first, it does that.

A disk takes about as long for one batch as for several. So a batch is held while the next one is about to be computed, and both are written at once, for `HOLD_SECONDS` and
`HOLD_REQUESTS` at most. Their clients then ask again together, and the batches stay large.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from garrison.errors import ProofError, UnavailableError
from garrison.protocol.messages import Reply
from garrison.protocol.statement import digests_in
from garrison.server.ledger.records import OK, Chain, Entry, write_entries

if TYPE_CHECKING:
    from garrison.server.ledger.writer import Writer
    from garrison.server.waiting import Waiting

Finish = Callable[[Sequence["Waiting"], Sequence[Reply]], None]
"""Gives each request its reply."""
GiveUp = Callable[[Sequence["Waiting"], str], None]
"""Tells each request to come again, and why."""


class _Batch(NamedTuple):
    requests: Sequence[Waiting]
    replies: Sequence[Reply]
    finish: Finish
    give_up: GiveUp


HOLD_SECONDS = 0.002
HOLD_REQUESTS = 256


class Recorder:
    """The entries of one model.

    Args:
        writer: of the chain.
        model, version: as entries name them.
    """

    def __init__(self, writer: Writer, model: str, version: int) -> None:
        self._writer = writer
        self._model = model
        self._version = version
        self._numbers = itertools.count()
        self._held: list[_Batch] = []
        self._held_requests = 0
        self._held_since = 0.0
        self._open: dict[int, tuple[float, list[_Batch]]] = {}

    def check(self) -> None:
        """Before a question is taken: what cannot be written down is neither computed nor charged.

        Raises:
            UnavailableError: the disk fails, or does not answer.
        """
        why = self._writer.why_not()
        if why:
            raise UnavailableError(f"{why}; try again")

    def record(self, batch: Sequence[Waiting], replies: Sequence[Reply], finish: Finish, give_up: GiveUp) -> None:
        """Take a batch to be written down at the next `flush`; then each request gets its reply, or is told to come again where that fails."""
        if not self._held:
            self._held_since = time.monotonic()
        self._held.append(_Batch(batch, replies, finish, give_up))
        self._held_requests += len(batch)

    def flush(self, *, more: bool = False) -> None:
        """Write down what is held. With `more`, where another batch comes at once, only what has been held for long enough."""
        held = self._held
        if not held or (
            more and self._held_requests < HOLD_REQUESTS and time.monotonic() - self._held_since < HOLD_SECONDS
        ):
            return
        self._held = []
        requests, self._held_requests = self._held_requests, 0
        number, now = next(self._numbers), self._writer.now()
        entries = _entries_at_once(held)
        loop = asyncio.get_running_loop()
        self._open[number] = self._held_since, held

        def make(chain: Chain) -> bytes:
            return chain.add_answers(now, self._model, self._version, entries or _entries(held), requests)

        def done(good: bool) -> None:  # noqa: FBT001  a callback
            with suppress(RuntimeError):  # the loop has ended, and so have all who waited
                loop.call_soon_threadsafe(self._written, number, good)

        self._writer.put(make, done, requests)

    def sweep(self, seconds: float) -> None:
        """Tell those to come again who have waited for the disk for longer than this. Their entries may be written still."""
        late = [number for number, (since, _) in self._open.items() if time.monotonic() - since > seconds]
        for number in late:
            for batch in self._open.pop(number)[1]:
                batch.give_up(batch.requests, "the ledger's disk does not answer")

    def _written(self, number: int, good: bool) -> None:  # noqa: FBT001  a callback
        for batch in self._open.pop(number, (0.0, []))[1]:
            if good:
                batch.finish(batch.requests, batch.replies)
            else:
                batch.give_up(batch.requests, self._writer.why_not() or "the ledger cannot be written just now")


def _entries_at_once(held: Sequence[_Batch]) -> bytes | None:
    """Their entries; None where that takes longer, or cannot be, of which the writer tells."""
    if not all(reply.proof for batch in held for reply in batch.replies):
        return None
    try:
        return _entries(held)
    except ValueError:
        return None


def _entries(held: Sequence[_Batch]) -> bytes:
    return write_entries([_entry(*pair) for batch in held for pair in zip(batch.requests, batch.replies, strict=True)])


def _entry(request: Waiting, reply: Reply) -> Entry:
    """What is written down of one request."""
    outcome = reply.outcome
    asked, told = _digests(request, reply)
    return Entry(
        request.caller,
        outcome.rows,
        OK if outcome.code == OK else outcome.code,  # the very object, else msgspec would not leave it out
        asked,
        told,
        request.nonce,
        outcome.replaced if reply.proof else 0,
        0 if request.sealed else outcome.distinct,
        outcome.shadow,
        outcome.receipt.hex(),
    )


def _digests(request: Waiting, reply: Reply) -> tuple[str, str]:
    """Of both bodies, in hex. For an answer in the open, those that the enclave signed."""
    if reply.proof:
        try:
            return digests_in(reply.proof)
        except ProofError:  # `suppress` would take as long as the reading itself
            pass
    told = hashlib.sha256(reply.body).hexdigest() if reply.body else ""
    return hashlib.sha256(request.body).hexdigest(), told
