"""Where the trials of one target ask, and what rang while they did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from garrison.attacks.base import Trial
from garrison.attacks.oracle import Answers, Oracle
from garrison.audit.alarms import Watched, remembers
from garrison.audit.report.content import AlarmCard
from garrison.audit.steps import Step
from garrison.audit.stream import SharedStream
from garrison.audit.targets import ServiceTarget, Target
from garrison.types import Array


class Desk:
    """Where the trials of one target ask.

    A service that keeps no memory of its callers is asked once for what several trials ask (`SharedStream`); one that does, in this process, begins
    anew for each. A running service that counts rows is asked by each thief from an account of its own, as far as there are so many.

    Attributes:
        asked: rows that the target itself was asked.
    """

    def __init__(self, target: Target, log: Callable[[int], Path | None]) -> None:
        self.target = target
        self._log = log
        self._streams: dict[int, SharedStream] = {}
        self._watched: Watched | None = None
        self._asked = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.close()

    @property
    def remembers(self) -> bool:
        """Whether what was asked before, and by whom, may change an answer; False only where that is known."""
        return not isinstance(self.target, ServiceTarget) or remembers(self.target)

    @property
    def asked(self) -> int:
        return self._asked + sum(stream.asked for stream in self._streams.values())

    def open(self, seed: int, thief: int = 0) -> Oracle:
        """What a trial asks.

        Args:
            seed: of the trial.
            thief: its number; a thief who asks with several budgets is one.
        """
        if isinstance(self.target, ServiceTarget) and remembers(self.target):
            self._watched = Watched(self.target)
            return self._watched
        if seed not in self._streams:
            self._streams[seed] = SharedStream(self.target, self._log(seed))
        stream = self._streams[seed].rewind()
        spare = self.target.facts.accounts - 1  # the last one is the honest users'
        own = thief % spare if self.target.identity.budget_rows and spare > 0 else 0
        return FromAccount(stream, own) if own else stream

    def close(self, trial: Trial) -> Trial:
        """The trial with the alarm that it raised."""
        seen = self._watched
        if seen is None:
            return trial
        self._asked += seen.asked
        rang = seen.rang()
        if rang is None:
            return dataclasses.replace(trial, watched=seen.watched)
        return dataclasses.replace(
            trial, watched=True, alarm_queries=rang.queries, alarm_summed=rang.summed, detector=rang.detector
        )


class FromAccount:
    """The same service, asked from another account on; an attack that asks from several begins with that one.

    Args:
        stream: the service.
        first: the account that the attack takes for its first, above 0.
    """

    def __init__(self, stream: SharedStream, first: int) -> None:
        self.facts = stream.facts
        self._stream, self._first = stream, first

    def query(self, x: Array) -> Answers:
        return self.query_as(x, 0)

    def query_as(self, x: Array, account: int) -> Answers:
        """`query` from the account of that number."""
        return self._stream.query_as(x, (self._first + account) % self.facts.accounts)


def alarm_card(trials: Sequence[Trial], step: Step, target: str) -> AlarmCard:
    """When the alarm rang in trials that differ in their seed alone; means over those in which it rang."""
    rang = [trial for trial in trials if trial.detector]
    return AlarmCard(
        target=target,
        attack=step.label,
        tactic=step.tactic,
        answers=step.view.value,
        budget=step.budget,
        trials=sum(trial.watched for trial in trials),
        alarmed=len(rang),
        queries=float(np.mean([trial.alarm_queries for trial in rang])) if rang else None,
        summed=float(np.mean([trial.alarm_summed for trial in rang])) if rang else None,
        detectors=tuple(sorted({trial.detector for trial in rang})),
    )
