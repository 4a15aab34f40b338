"""What the signed guard of one model allows each caller, and how far it is used: rows, and of them different ones.

Invariant: a caller never gets answers to more different rows than its limit, also where several servers charge side by side. An enclave that said "new" of a row
says "known" of it from then on, whether the charge went well or not. So new rows are charged even beyond the limit, the answer is held back, and who
stands beyond it is refused everything, repeats too, until the period ends.

What ends in `_at_once` waits for neither disk nor lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from garrison.server.budgets import NO_LIMIT, BudgetBook

Wants = Sequence[tuple[str, int]]

_BEYOND = -1
_UNBOUNDED = 2**62
_DISTINCT = "/distinct"
"""Behind a model's name, which holds no "/"."""


class Left(NamedTuple):
    """What a caller may still ask; -1 for no limit.

    Attributes:
        rows: in all.
        fresh: that it has not asked before.
    """

    rows: int
    fresh: int


UNLIMITED = Left(NO_LIMIT, NO_LIMIT)
_NOTHING = Left(0, 0)


@dataclass(frozen=True, slots=True)
class ModelBudget:
    """See the module's docstring. `rows` and `distinct` 0 stand for no limit."""

    model: str
    rows: int
    period: str
    book: BudgetBook | None
    distinct: int = 0

    def in_words(self) -> str:
        different = f", {self.distinct} of them different" if self.distinct else ""
        return f"{self.rows} rows{different} ({self.period})"

    def left(self, caller: str) -> Left:
        """What the caller may still ask.

        Raises:
            UnavailableError: as `BudgetBook.remaining` does.
        """
        if self.book is None:
            return UNLIMITED
        rows = self.book.remaining(self.model, caller, self.period, self.rows)
        if not self.distinct:
            return Left(rows, NO_LIMIT)
        fresh = self.book.remaining(self.model + _DISTINCT, caller, self.period, self.distinct, least=_BEYOND)
        return _NOTHING if fresh == _BEYOND else Left(rows, fresh)

    def left_at_once(self, callers: Iterable[str]) -> dict[str, Left] | None:
        """As `left`, for several callers; None where that takes the disk, or another thread is at it."""
        if self.book is None:
            return dict.fromkeys(callers, UNLIMITED)
        rows = self.book.remaining_at_once(self.model, callers, self.period, self.rows)
        if rows is None:
            return None
        if not self.distinct:
            return {caller: Left(left, NO_LIMIT) for caller, left in rows.items()}
        fresh = self.book.remaining_at_once(self.model + _DISTINCT, rows, self.period, self.distinct, least=_BEYOND)
        if fresh is None:
            return None
        return {c: _NOTHING if fresh[c] == _BEYOND else Left(left, fresh[c]) for c, left in rows.items()}

    def charge(self, wants: Wants) -> list[bool]:
        """See `BudgetBook.charge`."""
        if self.book is None:
            return [True] * len(wants)
        return self.book.charge(self.model, self.period, self.rows, wants)

    def charge_at_once(self, wants: Wants) -> list[bool] | None:
        """See `BudgetBook.charge_at_once`."""
        if self.book is None:
            return [True] * len(wants)
        return self.book.charge_at_once(self.model, self.period, self.rows, wants)

    def charge_fresh(self, wants: Wants) -> list[bool]:
        """Charge new rows; for each whether its answer may leave. What may not is charged all the same."""
        if self.book is None or not self.distinct:
            return [True] * len(wants)
        name = self.model + _DISTINCT
        granted = self.book.charge(name, self.period, self.distinct, wants)
        beyond = [want for want, good in zip(wants, granted, strict=True) if not good]
        if beyond:
            self.book.charge(name, self.period, _UNBOUNDED, beyond)
        return granted

    def charge_fresh_at_once(self, wants: Wants) -> list[bool] | None:
        """As `charge_fresh`, from what was leased before; None, and nothing is charged, where that takes the disk."""
        if self.book is None or not self.distinct:
            return [True] * len(wants)
        return self.book.charge_at_once(self.model + _DISTINCT, self.period, self.distinct, wants)
