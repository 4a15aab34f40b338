"""What an attack is, and the outer call that keeps it honest.

An attack is a frozen, strict value that writes `run`: it asks an oracle and hands over what it stole. The base's `carry_out`
meters every row, holds the budget, seeds, times and then measures the loot itself on rows that the attack never saw: an attack
does not grade its own work.

Invariant: equal answers and equal seed give equal loot. What the meter holds stands in `garrison.attacks.oracle`.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import msgspec
import numpy as np

from garrison.attacks import measures
from garrison.attacks.oracle import Labels, MeteredOracle, Oracle, OracleFacts
from garrison.errors import AuditError, QueryBudgetError
from garrison.types import Array, FloatArray

Clone = Callable[[Array], FloatArray]
"""What an extraction hands over: rows (n, *shape) -> probabilities (n, classes). A pure function, called in slices."""


class Goal(enum.StrEnum):
    """What an attacker wants."""

    EXTRACTION = "extraction"
    """A clone of the model."""


class View(enum.StrEnum):
    """How much of an answer the attacker uses."""

    SOFT = "soft"
    """The released probabilities."""
    LABELS = "labels"
    """The first class alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """What an attacker has before asking.

    Attributes:
        surrogate: (n, *shape), unlabelled inputs that are not the model's business, in the range of its inputs.
        in_distribution: (m, *shape), unlabelled inputs of the model's own kind, where the attacker has any.
    """

    surrogate: Array
    in_distribution: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Exam:
    """Rows that the loot is measured on; no attack sees them.

    Attributes:
        x: (rows, *shape).
        y: (rows,), true classes; None where there are no labels.
        reference: (rows, classes), the undefended model's probabilities; None where that model is not at hand.
    """

    x: Array
    y: Labels | None
    reference: FloatArray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One attack, one budget, one seed: what it cost and what it got.

    Attributes:
        attack: the attack with all its parameters, as it prints itself.
        budget: rows that it might ask.
        queries: rows that it asked, repeats included.
        unanswered: of those, the rows that were refused or lost.
        failed: of those, the rows lost for another reason than a refusal.
        seconds: wall time of the attack, the waiting for answers included.
        waiting: wall time of waiting for answers.
        scores: by metric, one value an exam row; its mean is the metric.
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

    @property
    def complete(self) -> bool:
        """Whether no row was lost to a failure. Refusals are the guard's work and leave a trial complete."""
        return self.failed == 0


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One measured figure.

    Attributes:
        attack: the attack's name, "none" for what honest users get.
        target: "undefended", "outlier-exposure" or "defended"; "none" for a control arm that asks nobody.
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


class Attack(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every attack: its fields are its parameters. Subclasses set the class variables and write `run`."""

    name: ClassVar[str]
    goal: ClassVar[Goal]
    asks: ClassVar[bool] = True
    """False for a control arm, which asks the service nothing."""

    def obstacle(self, facts: OracleFacts) -> str:  # noqa: ARG002
        """Why this attack cannot be carried out against such a service; "" where it can."""
        return ""

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone:
        """Attack. Asks at most `oracle.remaining` rows, draws all randomness from `rng`, prints and writes nothing."""
        raise NotImplementedError

    @final
    def carry_out(self, oracle: Oracle, knowledge: Knowledge, exam: Exam, *, budget: int, seed: int) -> Trial:
        """Run the attack under its meter and measure what it got.

        Args:
            oracle: the service.
            knowledge: what the attacker has.
            exam: what the clone is measured on.
            budget: most rows that may be asked, at least 1.
            seed: of all randomness. Equal seeds draw the same surrogate rows in the same order, whatever the budget.

        Raises:
            QueryBudgetError: the attack asked for more than the budget, or the budget is below 1.
            AuditError: the attack cannot be carried out here (see `obstacle`), or the clone or the oracle answered in another form
                than promised.
        """
        why_not = self.obstacle(oracle.facts)
        if why_not:
            raise AuditError(f"{self.name}: {why_not}")
        if budget < 1:
            raise QueryBudgetError(f"a budget must be at least 1 row, found {budget}")
        meter = MeteredOracle(oracle, budget)
        begun = time.perf_counter()
        clone = self.run(meter, knowledge, np.random.default_rng(seed))
        seconds = time.perf_counter() - begun
        return Trial(
            attack=repr(self),
            budget=budget,
            seed=seed,
            queries=meter.rows,
            unanswered=meter.refused,
            failed=meter.failed,
            seconds=seconds,
            waiting=meter.seconds,
            scores=measure_clone(clone, exam, oracle.facts.classes),
        )


def measure_clone(clone: Clone, exam: Exam, classes: int) -> dict[str, FloatArray]:
    """Row by row: `clone_accuracy` where the exam has labels, `fidelity` and `total_variation` where it has a reference."""
    p = np.asarray(clone(exam.x))
    if p.shape != (len(exam.x), classes) or not np.isfinite(p).all():
        raise AuditError(
            f"the clone answered {p.shape} for {len(exam.x)} rows, expected finite ({len(exam.x)}, {classes})"
        )
    first = p.argmax(axis=1)
    scores = {} if exam.y is None else {"clone_accuracy": measures.correct(first, exam.y)}
    if exam.reference is not None:
        scores["fidelity"] = measures.correct(first, exam.reference.argmax(axis=1))
        scores["total_variation"] = measures.total_variation(p, exam.reference)
    return scores


def chance_levels(exam: Exam) -> dict[str, float]:
    """What a constant answer gets, by metric."""
    found = {} if exam.y is None else {"clone_accuracy": measures.most_frequent_share(exam.y)}
    if exam.reference is not None:
        found["fidelity"] = measures.most_frequent_share(exam.reference.argmax(axis=1))
    return found


def findings_of(
    name: str, trials: Sequence[Trial], exam: Exam, *, target: str, answers: View, usd_per_query: float
) -> tuple[Finding, ...]:
    """One finding a metric from trials that differ in their seed alone.

    The interval is Student's over the seeds where there are three or more, else a bootstrap over the exam's rows; shares
    are cut to [0, 1].
    """
    chance = chance_levels(exam)
    queries = max(trial.queries for trial in trials)
    found = []
    for metric in trials[0].scores:
        e = measures.pooled([trial.scores[metric] for trial in trials])
        found.append(
            Finding(
                attack=name,
                target=target,
                metric=metric,
                value=e.value,
                low=None if e.low is None else max(0.0, e.low),
                high=None if e.high is None else min(1.0, e.high),
                interval=e.interval,
                queries=queries,
                budget=trials[0].budget,
                seeds=len(trials),
                answers=answers.value,
                chance=chance.get(metric),
                cost_usd=round(queries * usd_per_query, 6),
                complete=all(trial.complete for trial in trials),
            )
        )
    return tuple(found)
