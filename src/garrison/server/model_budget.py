"""What the signed guard of one model, and the operator's quotas, allow each caller, and how far it is used: rows, of them different ones, and rows a day.

Invariant: a caller never gets answers to more different rows than its limit, also where several servers charge side by side. An enclave that said "new" of a row
says "known" of it from then on, whether the charge went well or not. So new rows are charged even beyond the limit, the answer is held back, and who
stands beyond it is refused everything, repeats too, until the period ends.

What ends in `_at_once` waits for neither disk, network nor lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from garrison.errors import BudgetExhaustedError, UnavailableError
from garrison.server.budgets import NO_LIMIT, BudgetBook
from garrison.server.quotas import Quotas

Wants = Sequence[tuple[str, int]]

_BEYOND = -1
_UNBOUNDED = 2**62
_DISTINCT = "/distinct"
"""Behind a model's name, which holds no "/"."""
_CALLER, _MODEL = "/caller", "/model"
"""In place of a model's name: rows of one caller over all models, and of all callers of one model."""
_DAY = "day"


class Left(msgspec.Struct, frozen=True, gc=False):
    """What a caller may still ask; -1 for no limit. A struct, as one is made for every answer.

    Attributes:
        rows: in all, as the signed guard has it.
        fresh: that it has not asked before.
        day: today, as the operator has it.
        shared: today, together with all other callers of the model. Not to be told: it says what others ask.
    """

    rows: int
    fresh: int
    day: int = NO_LIMIT
    shared: int = NO_LIMIT

    @property
    def allowed(self) -> int:
        """Rows by all limits; -1 for none."""
        if self.day < 0 and self.shared < 0:
            return self.rows
        return min(rows for rows in (self.rows, self.day, self.shared) if rows >= 0)

    def after(self, rows: int, fresh: int) -> Left:
        """What is left once so many rows are charged, of which so many were new. Where a charge failed in the end, it is less."""
        left, new = _less(self.rows, rows), _less(self.fresh, fresh)
        if self.day < 0 and self.shared < 0:
            return Left(left, new)
        return Left(left, new, _less(self.day, rows), _less(self.shared, rows))


def _less(left: int, used: int) -> int:
    if left < 0:
        return left
    return left - used if left > used else 0


UNLIMITED = Left(NO_LIMIT, NO_LIMIT)
_NOTHING = Left(0, 0)


@dataclass(frozen=True, slots=True)
class ModelBudget:
    """See the module's docstring. `rows` and `distinct` 0 stand for no limit; without a book nothing is counted of them.

    Attributes:
        quotas: what the operator allows.
    """

    model: str
    rows: int
    period: str
    book: BudgetBook | None
    distinct: int = 0
    quotas: Quotas | None = None

    @property
    def counts(self) -> bool:
        """Whether there may be limits at all."""
        return bool(self.rows) or self._has_quotas

    @property
    def _has_quotas(self) -> bool:
        return self.quotas is not None and self.quotas.count_rows

    @property
    def _only_rows(self) -> bool:
        """Whether nothing but rows in all is limited."""
        return bool(self.rows) and not self.distinct and not self._has_quotas

    @property
    def refusal(self) -> str:
        """What is told whoever has too few rows left, by whichever limit."""
        if not self.rows:
            return "what is left of the quota of rows a day does not cover this request"
        return BudgetExhaustedError.told(self.rows, self.distinct, self.period)

    def left(self, caller: str) -> Left:
        """What the caller may still ask.

        Raises:
            UnavailableError: as `BudgetBook.remaining` does; or a key has been given a quota that nothing here can count.
        """
        day, shared = self._left_today(caller)
        if self.book is None or not self.rows:
            return Left(NO_LIMIT, NO_LIMIT, day, shared)
        rows = self.book.remaining(self.model, caller, self.period, self.rows)
        if not self.distinct:
            return Left(rows, NO_LIMIT, day, shared)
        fresh = self.book.remaining(self.model + _DISTINCT, caller, self.period, self.distinct, least=_BEYOND)
        return _NOTHING if fresh == _BEYOND else Left(rows, fresh, day, shared)

    def left_at_once(self, callers: Iterable[str]) -> dict[str, Left] | None:
        """As `left`, for several callers; None where that takes the store, or another thread is at it."""
        return self._all_left_at_once(callers) if self._has_quotas else self._signed_left_at_once(callers)

    def _signed_left_at_once(self, callers: Iterable[str]) -> dict[str, Left] | None:
        if self.book is None or not self.rows:
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

    def left_one_at_once(self, caller: str) -> Left | None:
        """As `left_at_once`, of a lone caller, in less time."""
        if self.book is None or not self._only_rows:
            found = self.left_at_once((caller,))
            return None if found is None else found[caller]
        rows = self.book.remaining_one_at_once(self.model, caller, self.period, self.rows)
        return None if rows is None else Left(rows, NO_LIMIT)

    def why_used_up(self, caller: str) -> str:
        """Which of the operator's quotas is known to leave the caller no row today; "" for none. Asks no store."""
        if not self._has_quotas or self.book is None:
            return ""
        for name, who, limit in self._quotas_of(caller):
            left = self.book.remaining_at_once(name, (who,), _DAY, limit)
            if left is not None and left[who] <= 0:
                return f"the caller's quota of {limit} rows a day is used up" if name == _CALLER else _USED_BY_ALL
        return ""

    def charge(self, wants: Wants) -> list[bool]:
        """Charge rows to all that limits them; for each whether its answer may leave. See `BudgetBook.charge`."""
        good = [True] * len(wants)
        for name, period, limit, which, some in self._groups(wants):
            if self.book is None:
                raise UnavailableError(_UNCOUNTED)
            chosen = [(k, want) for k, want in zip(which, some, strict=True) if good[k]]
            granted = self.book.charge(name, period, limit, [want for _, want in chosen])
            for (k, _), paid in zip(chosen, granted, strict=True):
                good[k] = paid
        return good

    def charge_at_once(self, wants: Wants) -> list[bool] | None:
        """As `charge`, from what was leased before; None, and nothing is charged, where that takes the store."""
        if not self._has_quotas:
            if self.book is None or not self.rows:
                return [True] * len(wants)
            return self.book.charge_at_once(self.model, self.period, self.rows, wants)
        charges = [(name, period, limit, some) for name, period, limit, _, some in self._groups(wants)]
        if not charges:
            return [True] * len(wants)
        return [True] * len(wants) if self.book is not None and self.book.charge_all_at_once(charges) else None

    def charge_one_at_once(self, caller: str, rows: int) -> bool:
        """As `charge_at_once`, for a lone request, in half of the time; False, and nothing is charged, also where there is more to charge than this."""
        if self.book is None or not self._only_rows:
            return False
        return self.book.charge_one_at_once(self.model, self.period, self.rows, caller, rows)

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
        """As `charge_fresh`, from what was leased before; None, and nothing is charged, where that takes the store."""
        if self.book is None or not self.distinct:
            return [True] * len(wants)
        return self.book.charge_at_once(self.model + _DISTINCT, self.period, self.distinct, wants)

    def _quotas_of(self, caller: str) -> list[tuple[str, str, int]]:
        """The operator's limits on a caller's rows a day: name of the count, whose it is, limit."""
        if self.quotas is None or not self.quotas.count_rows:
            return []
        own, shared = self.quotas.rows_of(caller), self.quotas.rows_of_model(self.model)
        found = [(_CALLER, caller, own)] if own else []
        return [*found, (_MODEL, self.model, shared)] if shared else found

    def _left_today(self, caller: str) -> tuple[int, int]:
        """By the operator's quotas, of the caller and of all together."""
        found = {_CALLER: NO_LIMIT, _MODEL: NO_LIMIT}
        for name, who, limit in self._quotas_of(caller):
            if self.book is None:
                raise UnavailableError(_UNCOUNTED)
            found[name] = self.book.remaining(name, who, _DAY, limit)
        return found[_CALLER], found[_MODEL]

    def _all_left_at_once(self, callers: Iterable[str]) -> dict[str, Left] | None:
        found = {}
        signed = self._signed_left_at_once(callers)
        if signed is None:
            return None
        for caller, left in signed.items():
            today = {_CALLER: NO_LIMIT, _MODEL: NO_LIMIT}
            for name, who, limit in self._quotas_of(caller):
                known = None if self.book is None else self.book.remaining_at_once(name, (who,), _DAY, limit)
                if known is None:
                    return None
                today[name] = known[who]
            found[caller] = Left(left.rows, left.fresh, today[_CALLER], today[_MODEL])
        return found

    def _groups(self, wants: Wants) -> list[tuple[str, str, int, list[int], Wants]]:
        """What is to be charged, by count and limit: the operator's first, so that what it refuses costs nothing of the signed budget."""
        groups: dict[tuple[str, str, int], tuple[list[int], list[tuple[str, int]]]] = {}
        if self._has_quotas:
            for k, (caller, rows) in enumerate(wants):
                for name, who, limit in self._quotas_of(caller):
                    which, some = groups.setdefault((name, _DAY, limit), ([], []))
                    which.append(k)
                    some.append((who, rows))
        found: list[tuple[str, str, int, list[int], Wants]] = [
            (*key, which, some) for key, (which, some) in groups.items()
        ]
        if self.rows and self.book is not None:
            found.append((self.model, self.period, self.rows, list(range(len(wants))), wants))
        return found


_USED_BY_ALL = "the rows of today that all callers of this model share are used up"
_UNCOUNTED = "quotas cannot be counted before the server is started anew; try again later"
