"""A service that remembers its callers, as one trial asks it: every caller is new, and what rang is read off at the end.

A chain that remembers answers by what was asked before, so its trials are never replayed from a file: each begins with an empty memory and asks
all its rows. That costs nothing in this process, which is the only place where an audit has such a chain in its hands.

Invariant: rows of cover traffic are the caller's, not the attacker's: an alarm is counted in the attacker's own queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from garrison.attacks.oracle import Answers, Oracle
from garrison.audit.targets import ServiceTarget, caller_name
from garrison.types import Array, BoolArray

WATCH = "watch"
ROWS_A_CALLER = 500
"""Rows that an honest caller asks."""
_FIRST_HONEST = 1_000


@dataclass(frozen=True, slots=True)
class Rang:
    """The first alarm of a trial.

    Attributes:
        queries: the attacker's rows of the account that rang first, up to the row at which it rang.
        summed: the attacker's rows of all accounts up to then.
        detector: which one.
    """

    queries: int
    summed: int
    detector: str


def watches(target: Oracle) -> bool:
    """Whether such a target has detectors."""
    return isinstance(target, ServiceTarget) and target.service.armed(WATCH) is not None


def remembers(target: Oracle) -> bool:
    """Whether a target in this process remembers its callers."""
    return isinstance(target, ServiceTarget) and target.service.caller_state.kept


def forget(target: Oracle) -> None:
    """Whoever asked such a target before is a stranger again."""
    if isinstance(target, ServiceTarget):
        target.service.caller_state.forget()


class Watched:
    """One trial's view of such a service.

    Attributes:
        asked: rows.
        watched: whether anything can ring.
    """

    def __init__(self, target: ServiceTarget) -> None:
        self.facts = target.facts
        self.asked = 0
        self.watched = watches(target)
        self._target = target
        self._trail: list[tuple[int, BoolArray]] = []
        forget(target)

    def follow(self, account: int, cover: BoolArray) -> None:
        """See `garrison.attacks.oracle.Following`."""
        self._trail.append((account, cover))

    def query(self, x: Array) -> Answers:
        """One request of account 0."""
        return self.query_as(x, 0)

    def query_as(self, x: Array, account: int) -> Answers:
        """`query` from an account."""
        self.asked += len(x)
        return self._target.query_as(x, account)

    def rang(self) -> Rang | None:
        """The first alarm, None where none rang. What a detector in shadow would have done does not count."""
        if not self.watched:
            return None
        accounts = {caller_name(account): account for account, _ in self._trail}
        first: tuple[int, Rang] | None = None
        for alarm in self._target.service.alarms():
            if not alarm.action or alarm.row < 1 or alarm.caller not in accounts:
                continue
            found = self._placed(accounts[alarm.caller], alarm.row, alarm.detector)
            if found is not None and (first is None or found[0] < first[0]):
                first = found
        return None if first is None else first[1]

    def _placed(self, account: int, row: int, detector: str) -> tuple[int, Rang] | None:
        """Which of all rows it was, and what it is worth in the attacker's own."""
        rows = own = summed = place = 0
        for asker, cover in self._trail:
            hidden = cover[: row - rows] if asker == account else cover
            mine = int(np.count_nonzero(~hidden))
            summed += mine
            place += len(hidden)
            if asker == account:
                rows, own = rows + len(hidden), own + mine
                if rows >= row:
                    return place, Rang(own, summed, detector)
        return None


class InTurn:
    """Honest users, each with so many rows, one after the other.

    Args:
        target: a service that remembers its callers; it has forgotten them all.
    """

    def __init__(self, target: ServiceTarget) -> None:
        self.facts = target.facts
        self._target = target
        self._rows = 0
        forget(target)

    def query(self, x: Array) -> Answers:
        """One request of whoever's turn it is."""
        account = _FIRST_HONEST + self._rows // ROWS_A_CALLER
        self._rows += len(x)
        return self._target.query_as(x, account)

    def alarmed(self, rows: int) -> tuple[int, int]:
        """Of the callers who asked the first so many rows: how many were alarmed, and how many there are."""
        callers = {caller_name(_FIRST_HONEST + i) for i in range(-(-rows // ROWS_A_CALLER))}
        rang = {alarm.caller for alarm in self._target.service.alarms() if alarm.action}
        return len(rang & callers), len(callers)
