"""Budget: a caller gets so many rows and no more (OWASP ML05; the price of every extraction attack is its queries)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import msgspec
import numpy as np

from garrison.errors import BudgetExhaustedError, GuardError
from garrison.guard.base import Marks, RowDefense, Settings, View, raise_not_tighter
from garrison.guard.distinct import DistinctRows
from garrison.guard.state import State
from garrison.types import BoolArray, FloatArray, ModelFacts, Phase

Period = Literal["day", "ever"]


class Budget(RowDefense, frozen=True):
    """Refuse a request that asks more rows, or more rows that it has not asked before, than its caller has left.

    The counts themselves are kept by the server, durable and outside the enclave, so that killing the enclave resets nothing; they
    are charged before an answer leaves. Here the signed limits are applied to what the server says is left. Which rows are new, only the
    enclave can tell (`garrison.guard.distinct`); it tells the server how many.

    Does not check: whether two callers are one person (Sybil accounts); whether the operator keeps the count honestly.

    Attributes:
        rows: rows a caller may ask in one period; at least 1. Repeats count.
        period: "day" (UTC) or "ever".
        distinct: different rows a caller may ask in one period, at most `rows`; 0 for no limit of its own.
        price_per_1000_rows: what the service charges, in US dollars; told to clients and used by audits, collected by nobody here.
    """

    name: ClassVar[str] = "budget"
    phase: ClassVar[Phase] = Phase.ADMIT
    in_graph: ClassVar[bool] = False
    reason: ClassVar[str] = "request.budget_exhausted"

    rows: int
    period: Period = "ever"
    distinct: int = 0
    price_per_1000_rows: float = 0.0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"budget.rows must be at least 1, found {self.rows}")
        if not 0 <= self.distinct <= self.rows:
            raise ValueError(f"budget.distinct must lie in 0 to budget.rows ({self.rows}), found {self.distinct}")
        if not 0 <= self.price_per_1000_rows < math.inf:
            raise ValueError("budget.price_per_1000_rows must be finite and not negative")

    def fresh_state(self, facts: ModelFacts) -> State | None:  # noqa: ARG002
        return DistinctRows(self.distinct, daily=self.period == "day") if self.distinct else None

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        batch = view.batch
        asks_much = batch.rows > min(
            batch.remaining
        )  # nearly never: the least that anybody has left covers all of the batch
        counts_new = bool(self.distinct and batch.fresh)
        if not asks_much and not counts_new:
            return Marks()
        over = self._over(view) if asks_much else np.zeros(batch.requests, dtype=np.bool_)
        if counts_new:
            if not isinstance(view.state, DistinctRows):
                raise GuardError(f"{self.name} keeps state, and has none")
            before = view.refused or (False,) * batch.requests
            over |= view.state.over(batch, [a or b for a, b in zip(before, over.tolist(), strict=True)])
        return Marks(refuse=over[batch.request_of_row]) if over.any() else Marks()

    def glance(self, view: View, settings: Settings) -> Mapping[str, FloatArray] | None:  # noqa: ARG002
        return {} if not self.distinct and view.batch.rows <= min(view.batch.remaining) else None

    def _over(self, view: View) -> BoolArray:
        """Requests that ask more rows than their caller has left."""
        batch = view.batch
        asked = np.bincount(batch.request_of_row, minlength=batch.requests)
        over = np.zeros(batch.requests, dtype=np.bool_)
        used: dict[str, int] = {}
        for i, (caller, remaining) in enumerate(zip(batch.callers, batch.remaining, strict=True)):
            if remaining < 0 or (view.refused and view.refused[i]):  # what is refused is not charged
                continue
            before = used.get(caller.id, 0)
            over[i] = before + asked[i] > remaining
            used[caller.id] = before + (0 if over[i] else int(asked[i]))
        return over

    def detail(self, facts: ModelFacts) -> str:  # noqa: ARG002
        return BudgetExhaustedError.told(self.rows, self.distinct, self.period)

    def check_tightened(self, signed: Self) -> None:
        rows = self.rows <= signed.rows and (self.period == signed.period or signed.period == "day")
        distinct = not signed.distinct or 0 < self.distinct <= signed.distinct
        if not (rows and distinct) or self.price_per_1000_rows != signed.price_per_1000_rows:
            raise_not_tighter(self.name, f"signed are {msgspec.to_builtins(signed)}, found {msgspec.to_builtins(self)}")
