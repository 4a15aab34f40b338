"""Checks proofs of work before the guard sees the requests that bring them. What is asked of whom is the guard's business.

Invariants: a proof counts once; it belongs to this service's key, which is made at start, so that nothing is good after a restart; the
memory for used proofs is bounded.

Not checked: whether the clock of the host is right. Who wants to use a proof a second time must first pay for `MOST_REMEMBERED` others.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from garrison.protocol import work

MOST_REMEMBERED = 65_536
_MARK_BYTES = 16


class Toll:
    """What proofs pay for.

    Args:
        public_key: of the service.
        bits: a row costs 2^bits hashes.
        window_seconds: how far the time in a proof may be from the clock's.
        clock: seconds since the epoch.
    """

    def __init__(
        self, public_key: bytes, bits: int, window_seconds: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._key = public_key
        self._bits = bits
        self._window = window_seconds
        self._clock = clock
        self._used: dict[bytes, int] = {}  # in the order of arrival
        self._latest: list[bytes] = []

    def begin(self) -> None:
        """Another batch begins: what was used up for the one before stays so."""
        self._latest.clear()

    def give_back(self) -> None:
        """Nothing of this batch was answered, and its requests are tried again: the proofs that it used up count again."""
        for mark in self._latest:
            self._used.pop(mark, None)
        self._latest.clear()

    def rows(self, proof: str, caller: str, body: bytes) -> int:
        """How many rows a proof pays for; 0 where there is none, it is not good, or was used before. Uses it up.

        Args:
            caller: whom the server names; an address works under no name.
            body: of the request, as it stands in the open.
        """
        found = work.read(proof) if proof else None
        if found is None:
            return 0
        when, counter = found
        now = self._clock()
        if abs(now - when) > self._window:
            return 0
        name = "" if caller.startswith("ip:") else caller
        digest = work.digest(self._key, name, body, when, counter)
        mark = digest[:_MARK_BYTES]
        paid = work.rows_paid(digest, self._bits)
        if paid < 1 or mark in self._used:
            return 0
        self._forget(now)
        self._used[mark] = when
        self._latest.append(mark)
        return paid

    def _forget(self, now: float) -> None:
        """Let go of what is too old to count, oldest arrivals first, and of the oldest where there are too many."""
        while self._used:
            mark = next(iter(self._used))
            if len(self._used) < MOST_REMEMBERED and now - self._used[mark] <= self._window:
                break
            del self._used[mark]
