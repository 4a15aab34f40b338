"""What a store of counts must do. A `Store` is used from one thread at a time; `garrison.server.budgets.BudgetBook` sees to that.

Invariants of every store: what `transaction` has written is durable when its block ends without an error, as far as the database says so; two programs that
lease at the same time never get more than the limit together; whatever cannot be reached or read raises, and is never read as 0; nothing waits for longer
than `MOST_SECONDS`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

MOST_SECONDS = 2.0
"""So long a request waits for a database; its client is told to try again then."""
DOWN_SECONDS = 0.5
"""So long nobody tries again after a database could not be reached."""
NEAR_END = 4
EVER = "ever"

Key = tuple[str, str, str]
"""Model, caller, period: "ever", or "day YYYY-MM-DD"."""


class Lease(NamedTuple):
    """Rows that were put on a count, to be used up one by one.

    Attributes:
        recorded: the count, with them.
        taken: how many; 0 where those that were needed are not free.
    """

    recorded: int
    taken: int


def lease_size(needed: int, block: int, free: int) -> int:
    """How many rows to lease: a block, and near the end less, so that little lies unused where nobody asks for it."""
    return min(max(needed, min(block, free // NEAR_END)), free)


class Counts(Protocol):
    """Counts while a transaction lasts. Keys that are written to come in ascending order."""

    def read(self, key: Key) -> int:
        """What stands on a count; 0 where there is none."""

    def lease(self, key: Key, needed: int, block: int, limit: int) -> Lease:
        """Put `lease_size(needed, block, limit - count)` on a count, or nothing where `needed` would pass the limit."""

    def give_back(self, key: Key, rows: int) -> None:
        """Take unused rows off a count."""


class Store(Protocol):
    """A database of counts.

    Attributes:
        words: which it is, without a password.
        rolls_back: whether nothing at all was written where `transaction` raises `UnavailableError`.
    """

    words: str
    rolls_back: bool

    def transaction(self, *, patient: bool = False) -> AbstractContextManager[Counts]:
        """Counts to read and write. Nothing is begun before something is written.

        Args:
            patient: wait longer for other programs: nobody waits for an answer.

        Raises:
            UnavailableError: the database cannot be used just now. What was to be written may be, or not.
        """

    def forget(self, before: str) -> None:
        """Drop counts of days before this period."""

    def close(self) -> None: ...
