"""Callers who ask the same rows again and again: counted and named in the log (averaging answers over repeats is how noise is taken off)."""

from __future__ import annotations

import logging
import math
import time
from typing import ClassVar

import msgspec

from garrison.errors import GuardError
from garrison.guard.base import RecordDefense, View
from garrison.guard.row_hash import RowHash
from garrison.guard.state import MOST_CALLERS, Callers, State
from garrison.types import ModelFacts, Phase, Released

logger = logging.getLogger(__name__)

REGISTERS = 256
_DIGEST_BYTES = 8
_RANK_BITS = 8 * (_DIGEST_BYTES - 1)
_BIAS = 0.7213 / (1 + 1.079 / REGISTERS)
_SMALL = 2.5 * REGISTERS


def estimate(registers: bytes | bytearray) -> float:
    """How many different digests were seen: HyperLogLog, and for few of them linear counting (Whang et al. 1990).

    Within about 6.5 % (one standard error), and 3 % where there are fewer than some 600.
    """
    raw = _BIAS * REGISTERS**2 / math.fsum(2.0**-rank for rank in registers)
    empty = registers.count(0)
    return REGISTERS * math.log(REGISTERS / empty) if raw <= _SMALL and empty else raw


class Seen(msgspec.Struct, forbid_unknown_fields=True, array_like=True):
    """What one caller has asked. Some 400 bytes in memory.

    Attributes:
        rows: that were answered.
        first, last: when, in seconds since the epoch, by the host's clock.
        told: rows when this caller was last named in the log; 0 for never.
        registers: by the first byte of a row's digest, the largest position of a first one bit among the others.
    """

    rows: int = 0
    first: float = 0.0
    last: float = 0.0
    told: int = 0
    registers: bytearray = msgspec.field(default_factory=lambda: bytearray(REGISTERS))

    def __post_init__(self) -> None:
        if len(self.registers) != REGISTERS or max(self.registers) > _RANK_BITS + 1:
            raise ValueError("these are no registers")
        if min(self.rows, self.told) < 0 or not math.isfinite(self.first + self.last):
            raise ValueError("these are no counts and times")

    @property
    def distinct(self) -> float:
        """About how many different rows; never more than there were."""
        return min(float(self.rows), estimate(self.registers))


class RepeatWatch(RecordDefense, frozen=True):
    """Count each caller's rows and, about, its different rows; name in the log who repeats itself.

    Refuses and changes nothing. Equal is what has equal canonical bytes: a row changed by one bit is another row.

    Does not check: whether repeats do harm; whether two callers are one person.

    Attributes:
        callers: so many are remembered; who asked longest ago is forgotten first.
        rows: a caller who has asked fewer is never named.
        share: a caller is named while its different rows are less than this share of its rows, in (0, 1]; again at each doubling of its rows.
    """

    name: ClassVar[str] = "repeat-watch"
    phase: ClassVar[Phase] = Phase.RECORD

    callers: int = 4096
    rows: int = 500
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.callers <= MOST_CALLERS:
            raise ValueError(f"repeat-watch.callers must lie in 1 to {MOST_CALLERS}, found {self.callers}")
        if self.rows < 1 or not 0 < self.share <= 1:
            raise ValueError("repeat-watch: rows must be at least 1, and share in (0, 1]")

    def fresh_state(self, facts: ModelFacts) -> State:  # noqa: ARG002
        return Callers(Seen, version=2, most=self.callers)

    def __call__(self, view: View, released: Released) -> None:  # noqa: ARG002
        state = view.state
        if not isinstance(state, Callers):
            raise GuardError(f"{self.name} keeps state, and has none")
        batch, now = view.batch, time.time()
        row_hash = RowHash(state.secret, _DIGEST_BYTES, b"garrison-repeat")
        names = sorted(batch.inputs)
        touched: dict[str, Seen] = {}
        for row, request in enumerate(batch.request_of_row.tolist()):
            if view.refused and view.refused[request]:
                continue
            caller = batch.callers[request].id
            seen = touched.get(caller)
            if seen is None:
                seen = touched[caller] = state.of(caller)
            _add(seen.registers, row_hash.one(batch.inputs, names, row))
            seen.rows += 1
        for caller, seen in touched.items():
            seen.first, seen.last = seen.first or now, now
            self._tell(caller, seen)

    def _tell(self, caller: str, seen: Seen) -> None:
        if seen.rows < max(self.rows, 2 * seen.told):
            return
        seen.told = seen.rows  # also where it is not named: to estimate takes longer than to count
        distinct = seen.distinct
        if distinct < self.share * seen.rows:
            logger.warning(
                "repeat-watch: caller %a has asked %d rows, about %.0f of them different, in %.0f s",
                caller,
                seen.rows,
                distinct,
                seen.last - seen.first,
            )


def _add(registers: bytearray, digest: bytes) -> None:
    register = digest[0]
    rank = _RANK_BITS - int.from_bytes(digest[1:], "big").bit_length() + 1
    if rank > registers[register]:
        registers[register] = rank
