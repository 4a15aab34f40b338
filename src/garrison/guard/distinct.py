"""Which rows a caller has asked before, for budgets in distinct rows.

Of each row only a keyed digest of 8 bytes is kept, in a table of fixed size that all callers share. Invariants: a row that was not asked before
is never taken for one that was (but for two digests that are equal, one pair in 2^64); what was forgotten, because the table is full, or with the enclave, counts as
new again. So every error is on the side of the budget, and nothing of this needs to be kept: the count is the host's, and durable.

Several front workers ask one enclave, and none knows at once what was charged by the others: each may say that all is left. So the enclave also counts for itself
how many rows of a caller it has made known, and makes no more known than the limit.

Equal is what has equal canonical bytes: a row changed by one bit is another row.
"""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Callable, Iterator, Sequence

from garrison.guard.row_hash import RowHash
from garrison.types import Batch

SLOTS = 2**17
"""Of 8 bytes: 1 MiB."""
_WAYS = 4
_DIGEST_BYTES = 8
_CLIENT_FAULT = "request."
_CALLERS = 2**15
"""So many callers' own counts are kept, the latest; of others only what the host says counts."""
_DAY_SECONDS = 86_400


class DistinctRows:
    """Rows that were charged, by caller. A `garrison.guard.state.State` of which no snapshot is made. Used by one thread at a time.

    Args:
        limit: most different rows of a caller that become known in one period; 0 for any number.
        daily: whether a period is a day (UTC); else it lasts as long as this does.
        clock: seconds since the epoch.
    """

    def __init__(
        self, limit: int = 0, *, daily: bool = False, slots: int = SLOTS, clock: Callable[[], float] = time.time
    ) -> None:
        if slots < _WAYS or slots & (slots - 1):
            raise ValueError(f"expected a power of two of at least {_WAYS} slots, found {slots}")
        self._slots = slots
        self._limit, self._daily, self._clock = limit, daily, clock
        self._looked: tuple[Batch, list[int]] | None = None
        self.clear()

    @property
    def changes(self) -> int:
        """Always the same: there is nothing that a snapshot would have to keep."""
        return 0

    def dump(self) -> bytes:
        return b""

    def load(self, data: bytes) -> None:  # noqa: ARG002
        self.clear()

    def clear(self) -> None:
        self._table = array("Q", bytes(_DIGEST_BYTES * self._slots))
        self._next = 0
        self._hash = RowHash(secrets.token_bytes(32), _DIGEST_BYTES, b"garrison-rows")
        self._looked = None
        self._known: dict[str, int] = {}
        self._day = 0.0

    def over(self, batch: Batch, refused: Sequence[bool]) -> list[bool]:
        """For each request whether it asks more new rows than its caller has left. Changes nothing.

        Args:
            batch: with `fresh`.
            refused: one entry a request, of what was refused before; empty for none.
        """
        found = [False] * batch.requests
        all_left = self._all_left(batch)
        if all(left < 0 or left >= batch.rows for left in all_left):
            return found
        digests = self._digests(batch)
        taken: dict[str, set[int]] = {}
        for request, (first, end) in enumerate(_spans(batch)):
            left = all_left[request]
            if left < 0 or (refused and refused[request]):
                continue
            mine = taken.setdefault(batch.callers[request].id, set())
            new = {digest for digest in digests[first:end] if digest not in mine and not self._knows(digest)}
            if len(mine) + len(new) > left:
                found[request] = True
            else:
                mine |= new
        return found

    def count(self, batch: Batch, refused: Sequence[str | None]) -> list[int]:
        """For each request how many of the rows that are charged are new. Changes nothing.

        Args:
            refused: one entry a request: the true code of a refusal, or None.
        """
        counts, new = [0] * batch.requests, set[int]()
        for request, digests in self._charged(batch, refused):
            before = len(new)
            new.update(digest for digest in digests if not self._knows(digest))
            counts[request] = len(new) - before
        return counts

    def learn(self, batch: Batch, refused: Sequence[str | None]) -> None:
        """The rows that are charged are known from here on; to be called when nothing can go wrong with their answers any more."""
        for request, digests in self._charged(batch, refused):
            new = sum([self._learn(digest) for digest in digests])
            if new and self._limit:
                caller = batch.callers[request].id
                self._known[caller] = self._known.pop(caller, 0) + new  # the latest stands last
        while len(self._known) > _CALLERS:
            del self._known[next(iter(self._known))]
        self._looked = None

    def _all_left(self, batch: Batch) -> Sequence[int]:
        """For each request how many new rows its caller may ask; below 0 for any number."""
        if not self._limit:
            return batch.fresh
        if self._daily and self._day != (day := self._clock() // _DAY_SECONDS):
            self._day, self._known = day, {}
        known, limit = self._known, self._limit
        return [
            min(left, max(limit - known.get(caller.id, 0), 0))  # below 0 would stand for no limit
            for caller, left in zip(batch.callers, batch.fresh, strict=True)
        ]

    def _charged(self, batch: Batch, refused: Sequence[str | None]) -> Iterator[tuple[int, list[int]]]:
        """The digests of each request that is counted and charged."""
        if not batch.fresh or max(batch.fresh) < 0:
            return
        digests = self._digests(batch)
        for request, (first, end) in enumerate(_spans(batch)):
            code = refused[request]
            if batch.fresh[request] >= 0 and (code is None or not code.startswith(_CLIENT_FAULT)):
                yield request, digests[first:end]

    def _digests(self, batch: Batch) -> list[int]:
        """A number above 0 for each row, of caller and row."""
        looked = self._looked
        if looked is not None and looked[0] is batch:
            return looked[1]
        found, names = [], sorted(batch.inputs)
        for row, request in enumerate(batch.request_of_row.tolist()):
            caller = batch.callers[request].id.encode()
            digest = self._hash.one(batch.inputs, names, row, len(caller).to_bytes(4, "big") + caller)
            found.append(int.from_bytes(digest, "big") or 1)
        self._looked = batch, found
        return found

    def _knows(self, digest: int) -> bool:
        place = digest % self._slots & -_WAYS
        return digest in self._table[place : place + _WAYS]

    def _learn(self, digest: int) -> bool:
        """Whether it was new."""
        place = digest % self._slots & -_WAYS
        ways = self._table[place : place + _WAYS]
        if digest in ways:
            return False
        free = ways.index(0) if 0 in ways else self._next % _WAYS
        self._next += 1
        self._table[place + free] = digest
        return True


def _spans(batch: Batch) -> list[tuple[int, int]]:
    """First row and end of each request; rows lie in order."""
    ends: list[int] = batch.request_of_row.searchsorted(range(batch.requests), side="right").tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))
