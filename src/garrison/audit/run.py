"""Carries a plan out.

    1  preflight      refuse to grade what is wired wrongly
    2  honest users   ask every arm the test rows and rows from outside
    3  the thief      every attack, budget and seed against every arm; the base measures
    4  the control    clones of nothing
    5  similarity     the guard over its threshold
    6  the report     figures, and what does not hold

Invariant: nothing is printed; the same plan on the same arms and rows gives the same figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from garrison import __version__
from garrison.attacks.base import Finding
from garrison.attacks.draws import has_range, uniform_rows
from garrison.attacks.exam import Exam
from garrison.attacks.oracle import MeteredOracle
from garrison.audit import preflight, words
from garrison.audit.arms import Arms, notes
from garrison.audit.cache import TrialCache
from garrison.audit.data import AuditData, Progress, Rows, silent
from garrison.audit.environment import environment
from garrison.audit.plan import Plan
from garrison.audit.report.content import DataCard, Report, TargetCard
from garrison.audit.report.pictures import cards
from garrison.audit.served import REPEATED_ROWS, Baseline, Served, ask_honestly, served_findings
from garrison.audit.similarity import SimilarityPoint, left_alone, similarity_curves
from garrison.audit.spending import Spending
from garrison.audit.targets import ServiceTarget, Target, TargetName
from garrison.audit.trials import PROBES, Looted, Thief
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
    work, targets = _Work(plan, arms, data, report), arms.targets()
    # 1 preflight
    report("preflight", 0.0)
    _preflight(work)
    # 2 honest users
    served = {name: _ask(work, name, target) for name, target in targets.items()}
    findings = [f for name in targets for f in _served(work, name, served[name])]
    f = arms.f
    thief = Thief(
        plan=plan,
        data=data,
        exam=_exam(work),
        reference_digest="" if f is None else f.identity.manifest_digest,
        cache=cache or TrialCache(None),
        spending=Spending(plan),
        tell=lambda message, share: report(message, _ASKING + (1 - _ASKING) * share),
        targets=len(targets),
    )
    # 3 the thief, and side by side with it 4 the control
    stolen, controls = thief.attack_all(targets, arms.defended, cpu_threads)
    # 5 similarity
    report("similarity over tau", 0.99)
    curves = _similarity(work)
    # 6 the report
    asked = len(data.test.x) + len(data.outside.x) + REPEATED_ROWS + 4 * PROBES + thief.asked[TargetName.DEFENDED]
    limits = words.limits(plan, arms, data, (*findings, *stolen.findings), asked)
    return _report(work, tuple(findings), stolen, tuple(controls), curves, limits, cpu_threads)


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
    for target in arms.targets().values():
        preflight.check_rows(target.facts, data)
        if data.test.y is not None and not regression:
            preflight.check_classes(target.facts, target.identity.labels, data.test)
    if data.test.y is None and arms.f is None:
        raise PlanError(f"{data.test.source} has no class numbers and no reference is given: nothing can be graded")
    probes = MeteredOracle(arms.defended, 4 * PROBES).query(data.test.x[:PROBES])
    preflight.check_answers(probes, arms.defended.identity.where)
    for reference in _references(arms):
        preflight.check_same_model(arms.defended, reference)
        preflight.check_depends_on_input(reference.raw(data.test.x[:PROBES]), f"{reference.identity.model!r}")
        if data.test.y is not None and not regression:
            first = reference.raw(data.test.x).argmax(axis=1)
            preflight.check_better_than_chance(first, data.test.y, f"{reference.identity.model!r} without a guard")


def _ask(work: _Work, name: TargetName, target: Target) -> Served:
    """Answers to honest questions; those of the service are compared with its reference before anything is graded."""
    place = list(TargetName).index(name)
    work.report(f"asking {name.value}", _ASKING * place / len(TargetName))
    served = ask_honestly(target, work.data)
    if name is not TargetName.DEFENDED:
        return served
    own, data = work.arms.reference, work.data
    if target.facts.regression:
        return served
    if own is None and data.test.y is not None:
        preflight.check_better_than_chance(served.test.labels, data.test.y, target.identity.where)
    elif own is not None:
        alone = left_alone(own, data.test.x)
        preflight.check_agreement(served.test, own.raw(data.test.x), alone, own.identity.model)
    return served


def _served(work: _Work, name: TargetName, served: Served) -> tuple[Finding, ...]:
    arms, data = work.arms, work.data
    target = arms.targets()[name]
    if target.facts.regression:
        return ()
    f = None if arms.f is target else _baseline(arms.f, data)
    own = _baseline(arms.reference, data) if name is TargetName.DEFENDED else None
    return served_findings(name.value, served, data, target.facts.classes, f, own)


def _baseline(model: ServiceTarget | None, data: AuditData) -> Baseline | None:
    return None if model is None else Baseline(model.raw(data.test.x), model.raw(data.outside.x))


def _similarity(work: _Work) -> tuple[SimilarityPoint, ...]:
    arms, data = work.arms, work.data
    if arms.reference is None or arms.reference.facts.regression:
        return ()
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
        headline=words.headline(plan, data, findings, controls),
        plan=plan,
        data={role: _data_card(r) for role, r in rows.items()},
        targets={name.value: _target_card(target, said[name]) for name, target in arms.targets().items()},
        fidelity_against="" if arms.f is None else arms.f.identity.model,
        environment=environment(cpu_threads),
        findings=findings,
        controls=controls,
        similarity=curves,
        left_out=tuple(stolen.left_out),
        told=tuple(stolen.told),
        pictures=cards(stolen.pictures),
        limits=limits,
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
    )
