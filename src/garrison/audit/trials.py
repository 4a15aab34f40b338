"""The thief's part of an audit: every attack, budget and seed against every arm, and the control arm that asks nobody.

Invariants: the arms meet the same attacks with the same seeds through the same meter; a finished trial is kept and not done
again, and the answers of one that was interrupted are not asked again (of a service in this process that remembers its callers they are: see
`garrison.audit.alarms`); budgets run from the smallest, so that larger ones share the
questions of smaller ones; what is left out is named with the reason. Arms are attacked side by side, each
on one thread, so that the figures do not depend on how many processors there are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
import numpy as np

from garrison.attacks.base import NAIVE, Finding, Trial, View, findings_of
from garrison.attacks.exam import Exam, Picture, chance_levels
from garrison.attacks.extraction.pixels import picture_shape
from garrison.attacks.knowledge import Knowledge, Labelled, Training
from garrison.attacks.oracle import LabelsOnly, MeteredOracle, OracleFacts
from garrison.audit import metrics
from garrison.audit.alarms import forget
from garrison.audit.cache import TrialCache
from garrison.audit.data import AuditData
from garrison.audit.desk import Desk, alarm_card
from garrison.audit.environment import versions
from garrison.audit.pace import Pace, spoken, workload
from garrison.audit.plan import CONTROL, Plan, load_attack
from garrison.audit.questions import PROBES
from garrison.audit.report.content import AlarmCard, LeftOut, Told
from garrison.audit.spending import Spending
from garrison.audit.steps import Step, seeds_of, steps_of
from garrison.audit.targets import Target, TargetName
from garrison.errors import AttackFailedError, AuditSpentError, GarrisonError, MissingExtraError

logger = logging.getLogger(__name__)

_AXES_OF_A_PICTURE = 3
FIDELITIES = (0.90, 0.95, 0.99)
_WHOLE = 0.999
NOBODY = "none"


@dataclass(slots=True)
class Looted:
    """What the attacks on one target gave."""

    findings: list[Finding] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    alarms: list[AlarmCard] = field(default_factory=list)

    def add(self, other: Looted) -> None:
        """Add what another target gave."""
        self.findings += other.findings
        self.left_out += other.left_out
        self.told += other.told
        self.pictures += other.pictures
        self.alarms += other.alarms


@dataclass(slots=True)
class Thief:
    """Carries out a plan's attacks.

    Attributes:
        exam: what clones are measured on; the digests of its rows are in `data`, of its reference in `reference_digest`.
        cache: finished trials, and the answers of those that are under way.
        spending: what may still be asked of the service.
        tell: told what is being done, and the share of all work that is done; from several threads.
        targets: how many there are.
        pace: how much there is to do, and how fast it goes.
        asked: rows that each target itself was asked.
        prints: fingerprints of targets that are known already.
    """

    plan: Plan
    data: AuditData
    exam: Exam
    reference_digest: str
    cache: TrialCache
    spending: Spending
    tell: Callable[[str, float], None]
    targets: int
    pace: Pace = field(default_factory=lambda: Pace((), 1))
    asked: dict[str, int] = field(default_factory=dict)
    prints: Mapping[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def attack_all(self, targets: Mapping[str, Target], control: Target, threads: int) -> tuple[Looted, list[Finding]]:
        """What all targets gave, in their order, and the findings of the control arm.

        Args:
            targets: each is asked from one thread at a time.
            control: tells shape and classes to the control arm.
            threads: how many arms are attacked side by side.
        """
        self.pace = Pace(workload(self.plan, targets), threads)
        with torch_threads(1), ThreadPoolExecutor(threads) as pool:
            # The service itself first: where the minutes run out, the comparisons are what is missing.
            order = sorted(targets, key=lambda name: name != TargetName.DEFENDED)
            arms = {name: pool.submit(self.attack, name, targets[name]) for name in order}
            last = pool.submit(self.control, control)
            try:
                whole = Looted()
                for name in targets:
                    whole.add(arms[name].result())
                return whole, last.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def attack(self, name: str, target: Target) -> Looted:
        """All attacks of the plan against one target. What cannot be carried out here is left out, and named."""
        print_of = self.prints.get(name) or fingerprint(target, self.data)
        with Desk(target, lambda seed: self.cache.answers(f"{name}-{print_of}", seed)) as desk:
            found = self._all_steps(name, desk, print_of)
            self.asked[name] = desk.asked
        found.findings += queries_to_fidelity(found.findings, self.plan.usd_per_query)
        return found

    def _all_steps(self, name: str, desk: Desk, print_of: str) -> Looted:
        found, exact, target, seeds = Looted(), "", desk.target, seeds_of(self.plan, name)
        thieves: dict[tuple[str, str], int] = {}
        for step in steps_of(self.plan, target.facts, name):
            why = step.senseless or self._obstacle(step, target.facts) or exact
            trials: list[Trial] = []
            thief = 0 if why else len(seeds) * thieves.setdefault((step.label, step.tactic), len(thieves))
            code = ""
            try:
                for number, seed in enumerate(() if why else seeds):
                    trials.append(self._asked(step, seed, desk, (name, print_of), thief + number))
            except (AuditSpentError, AttackFailedError) as over:
                why, code = str(over), over.code
            if why:
                place = {"thief": step.label, "column": step.tactic}
                found.left_out.append(LeftOut(target=name, attack=str(step), why=why, code=code, **place))
            if trials:
                self._add(found, step, trials, target, name)
                least = self.plan.settled if all(trial.settled for trial in trials) else self.plan.enough
                exact = exact or _enough(found.findings, step, min(least, self.plan.enough))
            self.pace.done(step, times=0 if step.senseless else len(seeds) - len(trials))
        return found

    def _obstacle(self, step: Step, facts: OracleFacts) -> str:
        """Why a step cannot be carried out against such a target; "" where it can."""
        if step.only and step.only not in kinds_of(facts.shape):
            return f"the plan tries it on {step.only} alone"
        if step.view is View.LABELS and facts.regression:
            return "a regressor answers no classes"
        if step.view is View.SOFT and not (facts.soft or facts.scores or facts.regression):
            return "the service releases labels alone"
        seen = dataclasses.replace(facts, soft=False, scores=False) if step.view is View.LABELS else facts
        known = self._knowledge(step)
        near = (f"{tactic.name}: {why}" for tactic in step.tactics if (why := tactic.obstacle(seen, known)))
        return step.attack.obstacle(seen) or step.attack.lacks(known) or next(near, "")

    def _asked(self, step: Step, seed: int, desk: Desk, target: tuple[str, str], thief: int) -> Trial:
        """The trial, from the cache or carried out by the thief of that number.

        Raises:
            AuditSpentError: a limit of the audit leaves no room for it.
            AttackFailedError: the attack itself is at fault; the others go on.
        """
        name, print_of = target
        key = self._key(step, seed, f"{name} {print_of}")
        trial = self.cache.get(key) or self._in_the_open(step, seed, desk, f"{name} {print_of}")
        if trial is not None:
            self.pace.done(step)
            return trial
        paid = name == TargetName.DEFENDED
        self.spending.reserve(step.budget, paid=paid)
        asked = desk.open(seed, thief)
        oracle = LabelsOnly(asked) if step.view is View.LABELS else asked
        self._tell(f"{step.label}, {step.tactic}, on {name}, {step.budget:,} {step.view.value}, seed {seed}")
        begun = time.monotonic()
        try:
            trial = step.attack.carry_out(
                oracle, self._knowledge(step), self.exam, budget=step.budget, seed=seed, tactics=step.tactics
            )
        except GarrisonError:
            raise
        except Exception as error:
            logger.exception("%s against %s, seed %d, fails", step, name, seed)
            raise AttackFailedError(f"it failed with an error of its own: {type(error).__name__}: {error}") from error
        trial = desk.close(trial)
        if paid:
            self.spending.give_back(step.budget - trial.queries - trial.cover)
        self.cache.put(key, trial)
        self.pace.done(step, time.monotonic() - begun)
        return trial

    def _in_the_open(self, step: Step, seed: int, desk: Desk, target: str) -> Trial | None:
        """What a thief gets who hides from a service that remembers nobody: what the same thief got who did not, if that was tried."""
        if desk.remembers or not step.tactics or not all(tactic.hides for tactic in step.tactics):
            return None
        found = self.cache.get(self._key(dataclasses.replace(step, tactics=()), seed, target))
        if found is None:
            return None
        around = "".join(f" with {tactic!r}" for tactic in step.tactics)
        cover = sum(tactic.beside(found.queries) for tactic in step.tactics)
        return dataclasses.replace(found, attack=f"{found.attack}{around}", cover=cover)

    def _add(self, found: Looted, step: Step, trials: list[Trial], asked: Target, name: str) -> None:
        price, chance = self.plan.usd_per_query, chance_levels(self.exam, asked.facts)
        found.findings += findings_of(trials, chance, who=step.tried(name), usd_per_query=price)
        for what in trials[0].told:
            values = [trial.told[what] for trial in trials if math.isfinite(trial.told.get(what, math.nan))]
            if not values:
                continue
            place = {"target": name, "attack": step.label, "tactic": step.tactic}
            found.told.append(Told(**place, budget=step.budget, what=what, value=sum(values) / len(values)))
        if any(trial.watched for trial in trials):
            found.alarms.append(alarm_card(trials, step, name))
        if name == TargetName.DEFENDED or self.targets == 1:
            found.pictures += trials[0].pictures

    def control(self, target: Target) -> list[Finding]:
        """The control arm; the target only tells shape and classes, and is asked nothing."""
        found: list[Finding] = []
        if not self.plan.control.budgets or target.facts.regression:
            return found
        attack = load_attack(CONTROL, self.plan.control.parameters)
        chance = chance_levels(self.exam, target.facts)
        for budget in sorted(self.plan.control.budgets):
            step = Step(CONTROL, attack, (), NAIVE, View.LABELS, budget)
            trials = [self._unasked(step, seed, target) for seed in self.plan.seeds]
            found += findings_of(trials, chance, who=step.tried(NOBODY), usd_per_query=self.plan.usd_per_query)
        return found

    def _unasked(self, step: Step, seed: int, target: Target) -> Trial:
        key = self._key(step, seed, NOBODY)
        trial = self.cache.get(key)
        if trial is None:
            self._tell(f"{step.label}, {step.budget:,} rows, seed {seed}")
            trial = step.attack.carry_out(target, self._knowledge(step), self.exam, budget=step.budget, seed=seed)
            self.cache.put(key, trial)
        self.pace.done(step)
        return trial

    def _knowledge(self, step: Step) -> Knowledge:
        data, first = self.data, self.plan.labelled_rows
        own, training, plan = data.own, data.training, self.plan.training
        labelled = None
        if own is not None and own.y is not None and first > 0:
            labelled = Labelled(own.x[:first], own.y[:first])
        trained = None
        if training is not None and training.y is not None and plan is not None:
            trained = Training(training.x, training.y, plan.algorithm, plan.settings)
        return Knowledge(
            data.asked_by(step.surrogate).x,
            in_distribution=None if own is None else own.x,
            labelled=labelled,
            training=trained,
            categorical=self.plan.categorical,
        )

    def _key(self, step: Step, seed: int, target: str) -> str:
        """The digest of all that a trial's result depends on."""
        data = self.data
        kinds = (data.asked_by(step.surrogate), data.test, data.own, data.training)
        rows = ["" if r is None else f"{r.sha256} {len(r.x)}" for r in kinds]
        uniform = 0 if self.exam.uniform is None else len(self.exam.uniform)
        knows = [self.plan.labelled_rows, msgspec.to_builtins(self.plan.training), str(self.plan.categorical)]
        around = [repr(tactic) for tactic in step.tactics]
        parts = [repr(step.attack), around, step.view.value, step.budget, seed, target, rows, uniform, knows]
        versioned = [*parts, self.reference_digest, *versions().values()]
        return hashlib.sha256(msgspec.json.encode(versioned)).hexdigest()

    def _tell(self, message: str) -> None:
        with self._lock:  # or a share that was read earlier would be told later
            self.tell(f"{message}; about {spoken(self.pace.left)} left", self.pace.share)


def kinds_of(shape: tuple[int, ...]) -> set[str]:
    """Images, tables, or both: rows of two axes may be pictures without channels, and may be none."""
    if len(shape) == _AXES_OF_A_PICTURE:
        return {"images"}
    return {"tables"} if picture_shape(shape) is None else {"tables", "images"}


def _enough(found: list[Finding], step: Step, enough: float) -> str:
    """Why dearer attacks are left out: this step has the model already; "" where it has not."""
    mine = {
        f.metric: f.value
        for f in found
        if (f.attack, f.tactic, f.answers, f.budget) == (step.label, step.tactic, step.view.value, step.budget)
    }
    shares = [mine[metric] for metric in ("fidelity", "uniform_fidelity") if metric in mine]
    if not shares or any(value is None or value < enough for value in shares):
        return ""
    reached = min(value for value in shares if value is not None)
    return f"{step} has {'the model' if reached >= _WHOLE else f'{100 * reached:.1f} % of the model'} already"


def queries_to_fidelity(found: list[Finding], usd_per_query: float) -> list[Finding]:
    """Q@f: for each attack and kind of answers, the fewest of the tried budgets that reach a fidelity."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for f in found:
        if f.metric == "fidelity" and f.value is not None:
            groups.setdefault((f.attack, f.tactic, f.answers), []).append(f)
    return [_reaching(group, level, usd_per_query) for group in groups.values() for level in FIDELITIES]


def _reaching(group: list[Finding], level: float, usd_per_query: float) -> Finding:
    most = max(group, key=lambda f: f.queries)
    queries = metrics.queries_to(level, {f.queries: f.value or 0.0 for f in group})
    return msgspec.structs.replace(
        most,
        metric=f"queries_to_fidelity_{level:.2f}",
        value=None if queries is None else float(queries),
        low=None,
        high=None,
        interval=f"none: not reached with {most.queries:,} queries"
        if queries is None
        else "none: of the tried budgets",
        chance=None,
        unit="queries",
        cost_usd=round((queries or most.queries) * usd_per_query, 6),
        complete=all(f.complete for f in group),
    )


def fingerprint(target: Target, data: AuditData) -> str:
    """What tells one target from another: its digests, and the classes that it names for probes of all three kinds.

    Where it answers is left out: the same service at another port is the same target. A running service that counts rows is known by its
    digests alone; a misinformation key that was changed does not show in them.
    """
    identity = target.identity
    model = identity.model_digest or identity.manifest_digest  # another seal of the same model is the same target
    parts: list[object] = [model, identity.guard_digest, target.facts.soft]
    if identity.budget_rows and identity.manifest_digest:
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
    rows = (data.test, data.surrogate, data.outside)
    forget(target)
    answers = [MeteredOracle(target, 4 * PROBES).query(r.x[:PROBES]) for r in rows]
    named = [a.labels.tolist() if a.values is None else np.round(a.values, 4).tolist() for a in answers]
    forget(target)
    return hashlib.sha256(msgspec.json.encode([*parts, named])).hexdigest()


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch on so many threads; as before afterwards.

    Raises:
        MissingExtraError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "audit") from error
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
