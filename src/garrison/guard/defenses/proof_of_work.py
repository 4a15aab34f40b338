"""Proof of work: a row costs its caller some hashes (Dziedzic et al., "Increasing the Cost of Model Extraction with Calibrated Proof of Work", ICLR 2022)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import msgspec
import numpy as np

from garrison.guard.base import Marks, RowDefense, Settings, View, raise_not_tighter
from garrison.types import BoolArray, ModelFacts, Phase

Who = Literal["all", "alarmed"]
WORK_LEVEL = 3
"""From this level of a watch's alarm on, a caller has to work."""
_MOST_BITS = 40
_MOST_SECONDS = 86_400


@runtime_checkable
class Levels(Protocol):
    """What a watch knows of callers."""

    def level(self, caller: str) -> int:
        """How hard the alarm is that is in force against a caller; 0 for none."""
        ...


class ProofOfWork(RowDefense, frozen=True):
    """Refuse a request whose proof of work pays for fewer rows than it asks.

    The service checks proofs, each good once and for a while (`garrison.enclave.toll`), before the chain runs; here what they pay for is compared
    with what is asked. Where no proofs are asked for (in-process use) nobody is refused.

    Does not check: who works. It is a price on volume, and a thief pays the same as anybody.

    Attributes:
        bits: a row costs 2^bits hashes (SHA-256) on average; 0 to 40.
        window_seconds: how far the time in a proof may be from the service's clock; 1 to 86,400. Used proofs are remembered so long.
        who: "all", or "alarmed" for callers against whom a watch has raised an alarm of the level "work" or above.
    """

    name: ClassVar[str] = "proof-of-work"
    phase: ClassVar[Phase] = Phase.ADMIT
    in_graph: ClassVar[bool] = False
    reason: ClassVar[str] = "request.work_required"

    bits: int = 12
    window_seconds: int = 300
    who: Who = "all"

    @property
    def shares(self) -> str:  # type: ignore[override]  # it depends on a parameter
        """Whose alarms decide who works."""
        return "watch" if self.who == "alarmed" else ""

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= _MOST_BITS:
            raise ValueError(f"proof-of-work.bits must lie in 0 to {_MOST_BITS}, found {self.bits}")
        if not 1 <= self.window_seconds <= _MOST_SECONDS:
            raise ValueError(
                f"proof-of-work.window_seconds must lie in 1 to {_MOST_SECONDS}, found {self.window_seconds}"
            )

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        batch = view.batch
        if not batch.worked:
            return Marks()
        asked = np.bincount(batch.request_of_row, minlength=batch.requests)
        lacking: BoolArray = asked > np.array(batch.worked)
        if self.who == "alarmed" and lacking.any():
            lacking &= self._alarmed(view)
        return Marks(refuse=lacking[batch.request_of_row]) if lacking.any() else Marks()

    def _alarmed(self, view: View) -> BoolArray:
        watch: object = view.state
        if not isinstance(watch, Levels):  # nobody watches
            return np.zeros(view.batch.requests, dtype=np.bool_)
        return np.array([watch.level(caller.id) >= WORK_LEVEL for caller in view.batch.callers])

    def detail(self, facts: ModelFacts) -> str:  # noqa: ARG002
        return (
            f"this request needs a proof of work of 2^{self.bits} hashes a row, not used before and at most "
            f"{self.window_seconds} s old, in the header garrison-work; garrison.client makes it by itself"
        )

    def check_tightened(self, signed: Self) -> None:
        looser = self.bits < signed.bits or self.window_seconds > signed.window_seconds
        if looser or (self.who != signed.who and signed.who == "all"):
            raise_not_tighter(self.name, f"signed are {msgspec.to_builtins(signed)}, found {msgspec.to_builtins(self)}")
