"""A batch on its way, and what of it goes to the enclave and to the budgets."""

from __future__ import annotations

import time

from garrison.enclave.host import Pending
from garrison.protocol.messages import Ask, Reply
from garrison.server.delivering import is_sendable
from garrison.server.model_budget import Left
from garrison.server.waiting import Waiting

_ANY = Left(-1, -1)


class Job:
    """A batch on its way.

    Attributes:
        pending: asked of the enclave already.
        left: what each caller had left when it began.
        answered: what the enclave said; not charged yet.
        fresh: for each request whether its new rows were granted; None where they are not charged yet.
    """

    __slots__ = ("answered", "batch", "fresh", "left", "pending", "rows", "started")

    def __init__(self, batch: list[Waiting]) -> None:
        self.batch = batch
        self.rows = sum(request.rows for request in batch)
        self.started = time.perf_counter()
        self.pending: Pending | None = None
        self.left: dict[str, Left] = {}
        self.answered: list[Reply] | None = None
        self.fresh: list[bool] | None = None

    def asks(self) -> list[Ask]:
        """What the enclave is asked, of callers who have `left`."""
        return [_ask(request, self.left[request.caller]) for request in self.batch]

    def spoilt(self) -> set[Waiting]:
        """Those requests for which a batch could not be handed to the enclave; none where it was handed over, or there is another reason."""
        if self.pending is not None or self.answered is not None:
            return set()
        left = self.left
        return {request for request in self.batch if not is_sendable(_ask(request, left.get(request.caller, _ANY)))}

    def wants(self, replies: list[Reply]) -> list[tuple[str, int]]:
        """By request, its caller and the rows to be charged."""
        return [(request.caller, reply.outcome.rows) for request, reply in zip(self.batch, replies, strict=True)]

    def news(self, replies: list[Reply]) -> list[tuple[str, int]]:
        """By request, its caller and the rows that it had not asked before."""
        return [(request.caller, reply.outcome.distinct) for request, reply in zip(self.batch, replies, strict=True)]

    def note_left(self, replies: list[Reply]) -> None:
        """What each caller has left after each of its requests."""
        left = self.left
        for request, reply in zip(self.batch, replies, strict=True):
            before, outcome = left[request.caller], reply.outcome
            if outcome.rows:
                before = left[request.caller] = before.after(outcome.rows, outcome.distinct)
            request.left = before


def _ask(request: Waiting, left: Left) -> Ask:
    r = request
    return Ask(r.caller, left.allowed, r.body, r.json_bytes, r.nonce, r.sealed, left.fresh, r.work, r.form)


def summed(wants: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The same, one entry a caller."""
    found: dict[str, int] = {}
    for caller, rows in wants:
        if rows:
            found[caller] = found.get(caller, 0) + rows
    return list(found.items())
