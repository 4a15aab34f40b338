"""What an attack is, and the outer call that keeps it honest.

An attack is a frozen, strict value that writes `run`: it asks an oracle and hands over what it stole. The base's `carry_out`
meters every row, holds the budget, seeds, times and then measures the loot itself on rows that the attack never saw: an attack
does not grade its own work.

Invariant: equal answers and equal seed give equal loot. What the meter holds stands in `garrison.attacks.oracle`.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import msgspec
import numpy as np

from garrison.attacks import measures
from garrison.attacks.exam import Clone, Exam, Loot, Picture, measure_loot, unit_of
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, Oracle, OracleFacts
from garrison.errors import AuditError, QueryBudgetError
from garrison.types import FloatArray

NAIVE = "naive"
"""A thief without tactics."""


class Goal(enum.StrEnum):
    """What an attacker wants."""

    EXTRACTION = "extraction"
    """A clone of the model."""
    EVASION = "evasion"
    """An input a little changed, of which the model names another class; see `garrison.attacks.evasion`."""


class View(enum.StrEnum):
    """How much of an answer the attacker uses."""

    SOFT = "soft"
    """The released probabilities."""
    LABELS = "labels"
    """The first class alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One attack, one budget, one seed: what it cost and what it got.

    Attributes:
        attack: the attack with all its parameters, as it prints itself.
        budget: rows that it might ask.
        queries: rows that it asked, repeats included.
        unanswered: of all rows that it sent, those that were refused or lost.
        failed: of those, the rows lost for another reason than a refusal.
        seconds: wall time of the attack, the waiting for answers included.
        waiting: wall time of waiting for answers.
        scores: by metric, one value an exam row, or a single one; its mean is the metric.
        told: what the attack says of itself; grades nothing.
        pictures: for the report.
        settled: see `Loot`.
        cover: rows of cover traffic that it sent beside its queries.
        watched: whether the service has detectors whose alarms could be read off.
        alarm_queries: the attacker's rows of one account when the first alarm rang; 0 where none rang.
        alarm_summed: the attacker's rows of all accounts then.
        detector: which one rang first, "" for none.
    """

    attack: str
    budget: int
    seed: int
    queries: int
    unanswered: int
    failed: int
    seconds: float
    waiting: float
    scores: Mapping[str, FloatArray]
    told: Mapping[str, float] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    settled: bool = False
    cover: int = 0
    watched: bool = False
    alarm_queries: int = 0
    alarm_summed: int = 0
    detector: str = ""

    @property
    def complete(self) -> bool:
        """Whether no row was lost to a failure. Refusals are the guard's work and leave a trial complete."""
        return self.failed == 0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One measured figure.

    Attributes:
        attack: the attack's name, "none" for what honest users get.
        target: "undefended", "outlier-exposure", "defended" or an arm of the plan; "none" for a control arm that asks nobody.
        metric: what was measured.
        value: None where it could not be reached or measured.
        low, high: the interval, None where there is none.
        interval: how the interval was made, or why there is none.
        queries: rows asked, for one seed.
        budget: rows that might be asked; for a control arm, rows that its clone was trained on.
        seeds: how many seeds the value is the mean of; 1 for what needs none.
        answers: "soft" or "labels"; "none" where nothing was stolen.
        chance: what a constant answer would get.
        unit: "fraction" of 1 unless it says otherwise.
        cost_usd: queries at the plan's price, in US dollars.
        complete: whether all was measured as planned.
        tactic: what the thief did who knows the defense, "naive" for nothing.
        cover: rows of cover traffic that were sent, and paid for, beside the queries, for one seed.
        unanswered: of all rows that were sent, those that were refused or lost, for one seed.
    """

    attack: str
    target: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    interval: str
    queries: int
    seeds: int
    budget: int = 0
    answers: str = "none"
    chance: float | None = None
    unit: str = "fraction"
    cost_usd: float = 0.0
    complete: bool = True
    tactic: str = NAIVE
    cover: int = 0
    unanswered: int = 0


class Tactic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an attacker who knows the defense does around any attack. Its fields are its parameters."""

    name: ClassVar[str]
    hides: ClassVar[bool] = False
    """Whether it changes only who asks, or what is asked beside: a service that remembers no caller answers as it does without it."""

    def beside(self, rows: int) -> int:  # noqa: ARG002
        """Rows of cover traffic that so many questions bring along; of a tactic that `hides`."""
        return 0

    def obstacle(self, facts: OracleFacts, knowledge: Knowledge) -> str:  # noqa: ARG002
        """Why this tactic cannot be used against such a service with such knowledge; "" where it can."""
        return ""

    def around(
        self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator
    ) -> tuple[MeteredOracle, Knowledge]:
        """The service as the attack sees it through this tactic, and what the attack knows.

        What comes back asks `oracle`, whose meter counts every row, and allows no more than it.
        """
        raise NotImplementedError


class Attack(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every attack: its fields are its parameters. Subclasses set the class variables and write `run`."""

    name: ClassVar[str]
    goal: ClassVar[Goal]
    asks: ClassVar[bool] = True
    """False for a control arm, which asks the service nothing."""

    def obstacle(self, facts: OracleFacts) -> str:  # noqa: ARG002
        """Why this attack cannot be carried out against such a service; "" where it can."""
        return ""

    def lacks(self, knowledge: Knowledge) -> str:  # noqa: ARG002
        """What this attack needs to know and does not; "" where it knows enough."""
        return ""

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone | Loot:
        """Attack. Asks at most `oracle.remaining` rows, draws all randomness from `rng`, prints and writes nothing."""
        raise NotImplementedError

    @final
    def carry_out(
        self,
        oracle: Oracle,
        knowledge: Knowledge,
        exam: Exam,
        *,
        budget: int,
        seed: int,
        tactics: Sequence[Tactic] = (),
    ) -> Trial:
        """Run the attack under its meter and measure what it got.

        Args:
            oracle: the service.
            knowledge: what the attacker has.
            exam: what the clone is measured on.
            budget: most rows that may be asked, at least 1.
            seed: of all randomness. Equal seeds draw the same surrogate rows in the same order, whatever the budget.
            tactics: what an attacker who knows the defense does around the attack; the first is the nearest to the service.

        Raises:
            QueryBudgetError: the attack asked for more than the budget, or the budget is below 1.
            AuditError: the attack cannot be carried out here (see `obstacle`), or the clone or the oracle answered in another form
                than promised.
        """
        why_not = (
            self.obstacle(oracle.facts)
            or self.lacks(knowledge)
            or next((f"{t.name}: {why}" for t in tactics if (why := t.obstacle(oracle.facts, knowledge))), "")
        )
        if why_not:
            raise AuditError(f"{self.name}: {why_not}")
        if budget < 1:
            raise QueryBudgetError(f"a budget must be at least 1 row, found {budget}")
        meter = MeteredOracle(oracle, budget)
        begun = time.perf_counter()
        rng = np.random.default_rng(seed)
        near, known = meter, knowledge
        for number, tactic in enumerate(tactics):
            near, known = tactic.around(near, known, np.random.default_rng([seed, number + 1]))
        found = self.run(near, known, rng)
        loot = found if isinstance(found, Loot) else Loot(found)
        seconds = time.perf_counter() - begun
        return Trial(
            attack="".join((repr(self), *(f" with {tactic!r}" for tactic in tactics))),
            budget=budget,
            seed=seed,
            queries=meter.rows,
            unanswered=meter.refused,
            failed=meter.failed,
            seconds=seconds,
            waiting=meter.seconds,
            scores=measure_loot(loot, exam, oracle.facts),
            told=dict(loot.told),
            settled=loot.settled,
            pictures=loot.pictures,
            cover=meter.cover,
        )


@dataclass(frozen=True, slots=True)
class Tried:
    """What a finding stands under: the attack and tactics by their names in the report, the target, the answers that were used."""

    attack: str
    target: str
    answers: View
    tactic: str = NAIVE


def findings_of(
    trials: Sequence[Trial], chance: Mapping[str, float], *, who: Tried, usd_per_query: float
) -> tuple[Finding, ...]:
    """One finding a metric from trials that differ in their seed alone.

    The interval is Student's over the seeds where there are three or more, else a bootstrap over the exam's rows; shares
    are cut to [0, 1], all else at 0. `chance` is what a constant answer gets, by metric.
    """
    queries, cover = max(trial.queries for trial in trials), max(trial.cover for trial in trials)
    unanswered = max(trial.unanswered for trial in trials)
    found = []
    for metric in trials[0].scores:
        e, unit = measures.pooled([trial.scores[metric] for trial in trials]), unit_of(metric)
        highest = 1.0 if unit == "fraction" else math.inf
        found.append(
            Finding(
                attack=who.attack,
                target=who.target,
                metric=metric,
                value=e.value,
                low=None if e.low is None else max(0.0, e.low),
                high=None if e.high is None else min(highest, e.high),
                interval=e.interval,
                queries=queries,
                budget=trials[0].budget,
                seeds=len(trials),
                answers=who.answers.value,
                tactic=who.tactic,
                cover=cover,
                unanswered=unanswered,
                chance=chance.get(metric),
                unit=unit,
                cost_usd=round((queries + cover) * usd_per_query, 6),
                complete=all(trial.complete for trial in trials),
            )
        )
    return tuple(found)
