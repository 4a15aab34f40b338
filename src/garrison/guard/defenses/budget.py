"""Budget: a caller gets so many rows and no more (OWASP ML05; the price of every extraction attack is its queries)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import msgspec
import numpy as np

from garrison.guard.base import Marks, RowDefense, Settings, View, raise_not_tighter
from garrison.types import ModelFacts, Phase

Period = Literal["day", "ever"]


class Budget(RowDefense, frozen=True):
    """Refuse a request that asks more rows than its caller has left.

    The count itself is kept by the server, durable and outside the enclave, so that killing the enclave resets nothing; it
    is charged before an answer leaves. Here the signed limit is applied to what the server says is left.

    Does not check: whether two callers are one person (Sybil accounts); whether the operator keeps the count honestly.

    Attributes:
        rows: rows a caller may ask in one period; at least 1.
        period: "day" (UTC) or "ever".
    """

    name: ClassVar[str] = "budget"
    phase: ClassVar[Phase] = Phase.ADMIT
    in_graph: ClassVar[bool] = False
    reason: ClassVar[str] = "request.budget_exhausted"

    rows: int
    period: Period = "ever"

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"budget.rows must be at least 1, found {self.rows}")

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        batch = view.batch
        if batch.rows <= min(batch.remaining):  # nearly always: the least that anybody has left covers all of the batch
            return Marks()
        asked = np.bincount(batch.request_of_row, minlength=batch.requests)
        over = np.zeros(batch.requests, dtype=np.bool_)
        used: dict[str, int] = {}
        for i, (caller, remaining) in enumerate(zip(batch.callers, batch.remaining, strict=True)):
            if remaining < 0 or (view.refused and view.refused[i]):  # what is refused is not charged
                continue
            before = used.get(caller.id, 0)
            over[i] = before + asked[i] > remaining
            used[caller.id] = before + (0 if over[i] else int(asked[i]))
        return Marks(refuse=over[batch.request_of_row])

    def detail(self, facts: ModelFacts) -> str:  # noqa: ARG002
        return f"the caller's budget of {self.rows} rows ({self.period}) does not cover this request"

    def check_tightened(self, signed: Self) -> None:
        if self.rows > signed.rows or (self.period != signed.period and signed.period == "ever"):
            raise_not_tighter(self.name, f"signed are {msgspec.to_builtins(signed)}, found {msgspec.to_builtins(self)}")
