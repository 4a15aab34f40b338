"""The auditor's own questions to a running service: answers are kept, and what they cost the thief is bounded.

A service counts rows for each API key, whoever asks with it. So honest users ask from a key of their own where the audit was given several, else
they take a quarter of what the one key may ask; and an audit that goes on where it stopped is answered from the file.

Invariant: equal arguments give equal rows, so that an audit that goes on asks what it asked before.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from garrison.attacks.oracle import AccountOracle, Answers, Oracle
from garrison.audit.data import AuditData, first_rows, last_rows
from garrison.audit.served import REPEATED_ROWS
from garrison.audit.stream import SharedStream
from garrison.audit.targets import ServiceTarget, Target
from garrison.types import Array

SHARE = 0.25
"""Of the rows that the only key may ask, those that honest users take."""
_TEST, _OUTSIDE = 0.5, 0.15
"""Of those; some test rows, and rows from outside, are asked twice."""
PROBES = 64


def honest_data(target: Target, data: AuditData) -> AuditData:
    """The rows that honest users ask: all of them, or as many as a service that counts rows allows."""
    budget = target.identity.budget_rows
    allowed = budget if target.facts.accounts > 1 else int(SHARE * budget)
    wanted = len(probed(data)) + len(data.test.x) + len(data.outside.x) + min(REPEATED_ROWS, len(data.outside.x))
    if not budget or wanted <= allowed:
        return data
    few, others = max(1, int(_TEST * allowed)), max(1, int(_OUTSIDE * allowed))
    return dataclasses.replace(data, test=first_rows(data.test, few), outside=last_rows(data.outside, others))


def probed(data: AuditData) -> Array:
    """The test rows that are asked before anything else."""
    return data.test.x[: min(PROBES, max(1, len(data.test.x) // 4))]


class OwnAccount:
    """A service that is asked from the last of its accounts, which an attack with fewer accounts leaves alone."""

    def __init__(self, target: Target) -> None:
        self.facts = target.facts
        self._target = target

    def query(self, x: Array) -> Answers:
        if self.facts.accounts > 1 and isinstance(self._target, AccountOracle):
            return self._target.query_as(x, self.facts.accounts - 1)
        return self._target.query(x)


@contextlib.contextmanager
def asking(target: Target, log: Path | None) -> Iterator[Oracle]:
    """The target as the auditor asks it; a running service is asked from an account of its own, and its answers are kept in `log`."""
    if isinstance(target, ServiceTarget):
        yield target
        return
    stream = SharedStream(OwnAccount(target), log)
    try:
        yield stream
    finally:
        stream.close()
