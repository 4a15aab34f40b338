"""Carries a plan out.

    1  preflight      refuse to grade what is wired wrongly
    2  honest users   ask every arm the test rows and rows from outside
    3  the thief      every attack, budget and seed against every arm; the base measures
    4  the control    clones of nothing
    5  evasion        pictures moved until they are named another class
    6  similarity     the guard over its threshold
    7  the report     figures, and what does not hold

Invariant: nothing is printed; the same plan on the same arms and rows gives the same figures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from garrison import __version__
from garrison.attacks.base import Finding
from garrison.attacks.draws import has_range, uniform_rows
from garrison.attacks.exam import Exam
from garrison.attacks.oracle import MeteredOracle, Oracle
from garrison.audit import evasion_words, preflight, words
from garrison.audit.alarms import InTurn, forget, remembers, watches
from garrison.audit.arms import Arms, notes
from garrison.audit.cache import TrialCache
from garrison.audit.data import AuditData, Progress, Rows, silent
from garrison.audit.environment import environment, versions
from garrison.audit.evading import Evaded, Evader
from garrison.audit.plan import Plan, priced
from garrison.audit.questions import PROBES, asking, honest_data, probed
from garrison.audit.report.content import DataCard, Report, TargetCard
from garrison.audit.report.pictures import cards
from garrison.audit.served import REPEATED_ROWS, Baseline, Served, alarmed_finding, ask_honestly, served_findings
from garrison.audit.similarity import SimilarityPoint, left_alone, similarity_curves
from garrison.audit.spending import Spending
from garrison.audit.table import cells_of, pareto_of
from garrison.audit.targets import ServiceTarget, Target, TargetName
from garrison.audit.trials import Looted, Thief, fingerprint
from garrison.errors import PlanError

_ASKING = 0.15
"""Share of an audit's time before the first clone."""
_UNIFORM_SEED = 20_160_810


@dataclass(frozen=True, slots=True)
class _Work:
    """One audit under way."""

    plan: Plan
    arms: Arms
    data: AuditData
    report: Progress
    cache: TrialCache
    prints: dict[str, str]

    def log(self, name: str, what: str) -> Path | None:
        """Where a running service's answers to the auditor's own questions are kept."""
        return self.cache.answers(f"{name}-{what}-{self.prints[name]}", 0) if name in self.prints else None


def run_audit(
    plan: Plan,
    arms: Arms,
    data: AuditData,
    *,
    cache: TrialCache | None = None,
    cpu_threads: int = 2,
    report: Progress = silent,
) -> Report:
    """Attack the service and its reference arms, and say what they got.

    Args:
        plan: what to do.
        arms: the service, and what it is compared with.
        data: the rows.
        cache: where finished trials are kept.
        cpu_threads: arms that are attacked side by side, each on one thread.
        report: told what is being done, and the share that is done.

    Raises:
        PreflightError: the target, its reference or the data are wired wrongly.
        MissingExtraError: torch is not installed.
    """
    plan = priced(plan, arms.defended.identity.price_per_1000_rows)
    work, targets = _Work(plan, arms, data, report, cache or TrialCache(None), {}), arms.targets()
    # 1 preflight
    report("preflight", 0.0)
    _preflight(work)
    # 2 honest users
    findings = [f for name in targets for f in _honest(work, name)]
    f = arms.f
    thief = Thief(
        plan=plan,
        data=data,
        exam=_exam(work),
        reference_digest="" if f is None else f.identity.manifest_digest,
        cache=work.cache,
        spending=Spending(plan),
        tell=lambda message, share: report(message, _ASKING + (1 - _ASKING) * share),
        targets=len(targets),
        prints=work.prints,
    )
    # 3 the thief, and side by side with it 4 the control
    steals = bool(plan.attacks or plan.control.budgets)
    stolen, controls = thief.attack_all(targets, arms.defended, cpu_threads) if steals else (Looted(), [])
    # 5 evasion
    evaded = _evaded(work, thief.spending)
    # 6 similarity
    report("similarity over tau", 0.99)
    curves = _similarity(work)
    # 7 the report
    asked = _asked_honestly(arms.defended, data) + thief.asked.get(TargetName.DEFENDED, 0) + evaded.asked
    limits = words.limits(plan, arms, data, (*findings, *stolen.findings), asked, (*stolen.left_out, *evaded.left_out))
    limits = (*evasion_words.limits(plan, evaded.cards), *limits)
    return _report(work, tuple(findings), stolen, tuple(controls), evaded, curves, limits, cpu_threads)


def _evaded(work: _Work, spending: Spending) -> Evaded:
    """What evasion attacks did to pictures, where the plan has any."""
    plan = work.plan
    if not plan.evasions:
        return Evaded()
    begun = 0.9 if plan.attacks else _ASKING
    tell = lambda message, share: work.report(message, begun + (0.99 - begun) * share)  # noqa: E731
    return Evader(plan, work.arms, work.data, spending, tell, work.cache).evade_all()


def _asked_honestly(target: Target, data: AuditData) -> int:
    """Rows that a target is asked beside the attacks' own, about."""
    own = honest_data(target, data)
    return len(own.test.x) + len(own.outside.x) + REPEATED_ROWS + 4 * PROBES


def _exam(work: _Work) -> Exam:
    """What clones are measured on; of tables also rows drawn evenly from the range."""
    plan, data, f, facts = work.plan, work.data, work.arms.f, work.arms.defended.facts
    uniform = None
    if plan.uniform_rows and len(facts.shape) == 1 and has_range(facts):
        uniform = uniform_rows(np.random.default_rng(_UNIFORM_SEED), plan.uniform_rows, facts)
    return Exam(
        data.test.x,
        None if facts.regression else data.test.y,
        None if f is None else f.raw(data.test.x),
        uniform,
        None if f is None or uniform is None else f.raw(uniform),
        {} if plan.training is None else plan.training.truth,
    )


def _references(arms: Arms) -> list[ServiceTarget]:
    """The models that the service is compared with, each once."""
    found = [r for r in (arms.undefended, arms.reference) if r is not None]
    return found[:1] if len(found) == 2 and found[0] is found[1] else found


def _preflight(work: _Work) -> None:
    arms, data = work.arms, work.data
    regression = arms.defended.facts.regression
    for name, target in arms.targets().items():
        if name in arms.others:
            continue  # the reference's model, which is checked
        preflight.check_rows(target.facts, data)
        preflight.check_knowledge(target.facts, data, work.plan.categorical)
        if data.test.y is not None and not regression:
            preflight.check_classes(target.facts, target.identity.labels, data.test)
    if (data.test.y is None or regression) and arms.f is None:
        what = "the model is a regressor" if regression else f"{data.test.source} has no class numbers"
        raise PlanError(f"{what} and no reference is given (--reference BUNDLE): nothing can be graded")
    if not isinstance(arms.defended, ServiceTarget):
        work.prints[TargetName.DEFENDED] = fingerprint(arms.defended, data)
    with asking(arms.defended, work.log(TargetName.DEFENDED, "probes")) as oracle:
        meter = MeteredOracle(oracle, 4 * PROBES)
        answers = meter.query(probed(honest_data(arms.defended, data)))
        preflight.check_answers(answers, arms.defended.identity.where, meter.last_error)
    for reference in _references(arms):
        preflight.check_same_model(arms.defended, reference)
        preflight.check_depends_on_input(reference.raw(data.test.x[:PROBES]), f"{reference.identity.model!r}")
        if data.test.y is not None and not regression:
            first = reference.raw(data.test.x).argmax(axis=1)
            preflight.check_better_than_chance(first, data.test.y, f"{reference.identity.model!r} without a guard")


def _honest(work: _Work, name: str) -> tuple[Finding, ...]:
    """What honest users of an arm get. For the arms of a table, which are many, it is kept."""
    targets = work.arms.targets()
    target = targets[name]
    work.report(f"asking {name}", _ASKING * list(targets).index(name) / len(targets))
    many = bool(work.plan.columns or work.plan.evasions)
    key = _honest_key(work, name, target) if many and isinstance(target, ServiceTarget) else ""
    kept = work.cache.honest(key) if key else None
    if kept is not None:
        return kept
    data = honest_data(target, work.data)
    if isinstance(target, ServiceTarget) and remembers(target):
        turns = InTurn(target)
        found = _served(work, name, _ask(work, name, turns, data), data)
        if watches(target):
            rows = len(data.test.x)
            found = (*found, alarmed_finding(name, *turns.alarmed(rows), rows))
        forget(target)
    else:
        with asking(target, work.log(name, "honest")) as oracle:
            found = _served(work, name, _ask(work, name, oracle, data), data)
    if key:
        work.cache.put_honest(key, found)
    return found


def _honest_key(work: _Work, name: str, target: Target) -> str:
    """The digest of all that it depends on."""
    arms, data = work.arms, work.data
    others = [r.identity.manifest_digest for r in (arms.f, arms.reference) if r is not None]
    rows = [f"{r.sha256} {len(r.x)}" for r in (data.test, data.outside)]
    parts = [name, fingerprint(target, data), others, rows, *versions().values()]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _ask(work: _Work, name: str, target: Oracle, data: AuditData) -> Served:
    """Answers to honest questions; those of the service are compared with its reference before anything is graded."""
    served = ask_honestly(target, data)
    own = work.arms.reference
    if name != TargetName.DEFENDED or target.facts.regression:
        return served
    there = ~served.test.refused
    if own is None and data.test.y is not None and there.sum() >= PROBES:
        where = work.arms.defended.identity.where
        preflight.check_better_than_chance(served.test.labels[there], data.test.y[there], where)
    elif own is not None:
        alone = left_alone(own, data.test.x)
        preflight.check_agreement(served.test, own.raw(data.test.x), alone, own.identity.model)
    return served


def _served(work: _Work, name: str, served: Served, data: AuditData) -> tuple[Finding, ...]:
    arms = work.arms
    target = arms.targets()[name]
    if target.facts.regression:
        return ()
    f = None if arms.f is target else _baseline(arms.f, data)
    guarded = name == TargetName.DEFENDED or name in arms.others
    own = _baseline(arms.reference, data) if guarded else None
    return served_findings(name, served, data, target.facts.classes, f, own)


def _baseline(model: ServiceTarget | None, data: AuditData) -> Baseline | None:
    return None if model is None else Baseline(model.raw(data.test.x), model.raw(data.outside.x))


def _similarity(work: _Work) -> tuple[SimilarityPoint, ...]:
    arms, data = work.arms, work.data
    if arms.reference is None or arms.reference.facts.regression or work.plan.columns or not work.plan.attacks:
        return ()  # a table compares chains, not thresholds, and evasion is not theft
    plain = arms.undefended
    against = None if plain is None or plain is arms.reference else plain.raw
    most = work.plan.outside_rows
    return similarity_curves(
        arms.reference,
        {"in-distribution": data.test.x[:most], "out-of-distribution": data.outside.x},
        against,
        key=arms.key,
        taus=work.plan.taus,
    )


def _report(
    work: _Work,
    served: tuple[Finding, ...],
    stolen: Looted,
    controls: tuple[Finding, ...],
    evaded: Evaded,
    curves: tuple[SimilarityPoint, ...],
    limits: tuple[str, ...],
    cpu_threads: int,
) -> Report:
    plan, arms, data = work.plan, work.arms, work.data
    said = notes(arms)
    findings = (*served, *stolen.findings)
    rows = {"test": data.test, "surrogate": data.surrogate, "outside": data.outside}
    rows |= {} if data.own is None else {"in-distribution": data.own}
    rows |= {name: others for name, others in data.others.items() if others is not data.surrogate}
    return Report(
        garrison=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        headline=words.headline(plan, data, findings, controls)
        if plan.attacks
        else evasion_words.headline(evaded.cards, data.test.source),
        plan=plan,
        data={role: _data_card(r) for role, r in rows.items()},
        targets={name: _target_card(target, said[name]) for name, target in arms.targets().items()},
        fidelity_against="" if arms.f is None else arms.f.identity.model,
        environment=environment(cpu_threads),
        findings=findings,
        controls=controls,
        similarity=curves,
        left_out=(*stolen.left_out, *evaded.left_out),
        evasions=tuple(evaded.cards),
        told=tuple(stolen.told),
        pictures=cards(stolen.pictures),
        limits=limits,
        alarms=tuple(stolen.alarms),
        missing=dict(arms.missing),
        cells=(table := cells_of(plan, tuple(arms.targets()), arms.missing, findings, stolen)),
        pareto=pareto_of(table, findings),
    )


def _data_card(rows: Rows) -> DataCard:
    return DataCard(source=rows.source, rows=len(rows.x), shape=rows.x.shape[1:], sha256=rows.sha256)


def _target_card(target: Target, note: str) -> TargetCard:
    identity = target.identity
    return TargetCard(
        note=note,
        where=identity.where,
        model=identity.model,
        version=identity.version,
        manifest_digest=identity.manifest_digest,
        guard_digest=identity.guard_digest,
        chain=None if identity.chain is None else tuple(spec.name for spec in identity.chain),
        overridden=identity.overridden,
        model_digest=identity.model_digest,
        answers_digest=identity.answers_digest,
    )
