"""Carries a plan out.

    1  preflight      refuse to grade what is wired wrongly
    2  honest users   ask every arm the test rows and rows from outside
    3  the thief      every attack, budget and seed against every arm; the base measures
    4  the control    clones of nothing
    5  similarity     the guard over its threshold
    6  the report     figures, and what does not hold

Invariants: each arm is asked through the same meter and the same attacks with the same seeds; a finished trial is kept and not
done again; nothing is printed.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata

import msgspec
import numpy as np

from garrison import __version__
from garrison.attacks import measures
from garrison.attacks.base import (
    Attack,
    Exam,
    Finding,
    Knowledge,
    LabelsOnly,
    MeteredOracle,
    Oracle,
    Trial,
    View,
    findings_of,
)
from garrison.audit import metrics, preflight, words
from garrison.audit.arms import Arms, notes
from garrison.audit.cache import TrialCache
from garrison.audit.data import AuditData, Report, Rows
from garrison.audit.plan import CONTROL, Plan, load_attack
from garrison.audit.report.content import DataCard, TargetCard
from garrison.audit.report.content import Report as Content
from garrison.audit.served import REPEATED_ROWS, Baseline, Served, ask_honestly, served_findings
from garrison.audit.similarity import SimilarityPoint, signed_tau, similarity_curves
from garrison.audit.stream import SharedStream
from garrison.audit.targets import Target, TargetName
from garrison.errors import MissingExtraError

PROBES = 64
FIDELITIES = (0.90, 0.95, 0.99)
NOBODY = "none"
_SOFTWARE = ("numpy", "torch", "onnxruntime")
_TRAINING_SHARE = 0.85
"""Of an audit's time; the rest is asking."""


def _silent(message: str, fraction: float) -> None:
    """The progress callback of a caller who wants none."""
    del message, fraction


@dataclass(slots=True)
class _Work:
    """One audit under way."""

    plan: Plan
    arms: Arms
    data: AuditData
    cache: TrialCache
    cpu_threads: int
    report: Report
    exam: Exam
    trained_rows: int = 0
    all_rows: int = 1
    asked: dict[TargetName, int] = field(default_factory=dict)

    def tell(self, message: str) -> None:
        self.report(message, (1 - _TRAINING_SHARE) + _TRAINING_SHARE * self.trained_rows / self.all_rows)


def run_audit(
    plan: Plan,
    arms: Arms,
    data: AuditData,
    *,
    cache: TrialCache | None = None,
    cpu_threads: int = 2,
    report: Report = _silent,
) -> Content:
    """Attack the service and its reference arms, and say what they got.

    Args:
        plan: what to do.
        arms: the service, and what it is compared with.
        data: the rows.
        cache: where finished trials are kept.
        cpu_threads: of torch while clones are trained.
        report: told what is being done, and the share that is done.

    Raises:
        PreflightError: the target, its reference or the data are wired wrongly.
        MissingExtraError: torch is not installed.
    """
    exam = Exam(data.test.x, data.y, None if arms.f is None else arms.f.raw(data.test.x))
    work = _Work(plan, arms, data, cache or TrialCache(None), cpu_threads, report, exam)
    arms_there = arms.targets()
    work.all_rows = sum(budget for _, _, budget in _attacks(plan)) * len(arms_there) * len(plan.seeds)
    work.all_rows += sum(plan.control.budgets) * len(plan.seeds)
    # 1 preflight
    report("preflight", 0.0)
    _preflight(work)
    # 2 honest users
    served = {name: _ask(work, name, target) for name, target in arms_there.items()}
    findings = [f for name in arms_there for f in _served(work, name, served[name])]
    # 3 the thief
    with _torch_threads(cpu_threads):
        findings += [f for name, target in arms_there.items() for f in _attacked(work, name, target)]
        # 4 the control
        controls = tuple(_control(work))
    # 5 similarity
    report("similarity over tau", 0.99)
    curves = _similarity(work)
    # 6 the report
    return _content(work, tuple(findings), controls, curves)


def _attacks(plan: Plan) -> Iterator[tuple[Attack, View, int]]:
    """Every attack with its budget, smallest first, so that larger budgets share the questions of smaller ones."""
    for item in plan.attacks:
        attack = load_attack(item.name, item.parameters)
        for budget in sorted(item.budgets):
            yield attack, item.answers, budget


def _preflight(work: _Work) -> None:
    arms, data = work.arms, work.data
    for target in arms.targets().values():
        preflight.check_rows(target.facts, data)
        preflight.check_classes(target.facts, target.identity.labels, data.test)
    for reference in (arms.undefended, arms.reference):
        if reference is not None:
            preflight.check_same_model(arms.defended, reference)
    probes = MeteredOracle(arms.defended, 4 * PROBES).query(data.test.x[:PROBES])
    preflight.check_answers(probes, arms.defended.identity.where)
    chance = measures.most_frequent_share(data.y)
    for reference in {id(r): r for r in (arms.undefended, arms.reference) if r is not None}.values():
        right = float(np.mean(reference.raw(data.test.x).argmax(axis=1) == data.y))
        preflight.check_better_than_chance(right, chance, len(data.y), f"{reference.identity.model!r} without a guard")


def _ask(work: _Work, name: TargetName, target: Target) -> Served:
    work.report(f"asking {name}", (1 - _TRAINING_SHARE) * list(work.arms.targets()).index(name) / 3)
    served = ask_honestly(target, work.data)
    work.asked[name] = len(work.data.test.x) + len(work.data.outside.x) + REPEATED_ROWS + PROBES
    if name is not TargetName.DEFENDED:
        return served
    own = work.arms.reference
    if own is None:
        right = float(np.mean(served.test.labels == work.data.y))
        chance = measures.most_frequent_share(work.data.y)
        preflight.check_better_than_chance(right, chance, len(work.data.y), target.identity.where)
    else:
        raw = own.raw(work.data.test.x)
        alone = raw.max(axis=1) >= (signed_tau(own.service.manifest.guard) or 0.0)
        preflight.check_agreement(served.test, raw, alone, own.identity.model)
    return served


def _served(work: _Work, name: TargetName, served: Served) -> Sequence[Finding]:
    arms, data = work.arms, work.data
    target = arms.targets()[name]
    f = None if arms.f is None or arms.f is target else Baseline(arms.f.raw(data.test.x), arms.f.raw(data.outside.x))
    own = arms.reference if name is TargetName.DEFENDED else None
    guard = None if own is None else Baseline(own.raw(data.test.x), own.raw(data.outside.x))
    return served_findings(name.value, served, data, target.facts.classes, f, guard)


def _attacked(work: _Work, name: TargetName, target: Target) -> list[Finding]:
    streams = {seed: SharedStream(target) for seed in work.plan.seeds}
    print_of = _fingerprint(work, target)
    found: list[Finding] = []
    fidelity: dict[View, dict[int, float]] = {}
    for attack, view, budget in _attacks(work.plan):
        if view is View.SOFT and not target.facts.soft:
            work.trained_rows += budget * len(work.plan.seeds)
            continue
        trials = []
        for seed in work.plan.seeds:
            oracle: Oracle = streams[seed].rewind()
            oracle = LabelsOnly(oracle) if view is View.LABELS else oracle
            trials.append(_trial(work, attack, view, budget, seed, oracle, (name.value, print_of)))
        more = findings_of(
            attack.name, trials, work.exam, target=name.value, answers=view, usd_per_query=work.plan.usd_per_query
        )
        found += more
        fidelity.setdefault(view, {}).update({budget: f.value for f in more if f.metric == "fidelity" and f.value})
    work.asked[name] += sum(stream.asked for stream in streams.values())
    return found + [q for view, by_budget in fidelity.items() for q in _queries_to(work, name, view, by_budget)]


def _trial(
    work: _Work, attack: Attack, view: View, budget: int, seed: int, oracle: Oracle, target: tuple[str, str]
) -> Trial:
    name, fingerprint = target
    work.tell(f"{attack.name} on {name}, {budget:,} {view.value}, seed {seed}")
    parts = [repr(attack), view.value, budget, seed, fingerprint, work.data.surrogate.sha256, work.data.test.sha256]
    f = work.arms.f
    parts += [len(work.exam.x), "" if f is None else f.identity.manifest_digest, work.cpu_threads, *_versions().values()]
    key = hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
    trial = work.cache.get(key)
    if trial is None:
        trial = attack.carry_out(oracle, Knowledge(work.data.surrogate.x), work.exam, budget=budget, seed=seed)
        work.cache.put(key, trial)
    work.trained_rows += budget
    return trial


def _control(work: _Work) -> list[Finding]:
    plan, found = work.plan, []
    if not plan.control.budgets:
        return []
    attack = load_attack(CONTROL, plan.control.parameters)
    for budget in sorted(plan.control.budgets):
        target = work.arms.defended
        trials = [_trial(work, attack, View.LABELS, budget, seed, target, (NOBODY, "")) for seed in plan.seeds]
        found += findings_of(attack.name, trials, work.exam, target=NOBODY, answers=View.LABELS, usd_per_query=0.0)
    return found


def _queries_to(work: _Work, name: TargetName, view: View, fidelity: dict[int, float]) -> list[Finding]:
    """Q@f: the fewest of the tried budgets that reach a fidelity."""
    most = max(fidelity, default=0)
    found = []
    for level in FIDELITIES if fidelity else ():
        queries = metrics.queries_to(level, fidelity)
        found.append(
            Finding(
                attack="knockoff",
                target=name.value,
                metric=f"queries_to_fidelity_{level:.2f}",
                value=None if queries is None else float(queries),
                low=None,
                high=None,
                interval="none: the fewest of the tried budgets" if queries else f"none: not reached with {most:,} queries",
                queries=most,
                budget=most,
                seeds=len(work.plan.seeds),
                answers=view.value,
                unit="queries",
                cost_usd=round((queries or most) * work.plan.usd_per_query, 6),
            )
        )
    return found


def _fingerprint(work: _Work, target: Target) -> str:
    """What tells one target from another: its digests, and the classes that it names for probes of all three kinds."""
    identity = target.identity
    rows: list[Rows] = [work.data.test, work.data.surrogate, work.data.outside]
    named = [MeteredOracle(target, 4 * PROBES).query(r.x[:PROBES]).labels.tolist() for r in rows]
    parts = [identity.manifest_digest, identity.guard_digest, target.facts.soft, named]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _similarity(work: _Work) -> tuple[SimilarityPoint, ...]:
    arms, data = work.arms, work.data
    if arms.reference is None:
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


def _content(
    work: _Work, findings: tuple[Finding, ...], controls: tuple[Finding, ...], curves: tuple[SimilarityPoint, ...]
) -> Content:
    plan, arms, data = work.plan, work.arms, work.data
    said = notes(arms)
    asked = work.asked[TargetName.DEFENDED]
    rows = {"test": data.test, "surrogate": data.surrogate, "outside": data.outside}
    return Content(
        garrison=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        headline=words.headline(plan, data, findings, controls),
        plan=plan,
        data={role: DataCard(source=r.source, rows=len(r.x), shape=r.x.shape[1:], sha256=r.sha256) for role, r in rows.items()},
        targets={name.value: _card(target, said[name]) for name, target in arms.targets().items()},
        fidelity_against="" if arms.f is None else arms.f.identity.model,
        environment=_environment(work.cpu_threads),
        findings=findings,
        controls=controls,
        similarity=curves,
        limits=words.limits(plan, arms, data, findings, asked),
    )


def _card(target: Target, note: str) -> TargetCard:
    i = target.identity
    return TargetCard(
        note=note,
        where=i.where,
        model=i.model,
        version=i.version,
        manifest_digest=i.manifest_digest,
        guard_digest=i.guard_digest,
        chain=None if i.chain is None else tuple(spec.name for spec in i.chain),
        overridden=i.overridden,
    )


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Torch on so many threads; as before afterwards."""
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


def _versions() -> dict[str, str]:
    return {"garrison": __version__} | {name: metadata.version(name) for name in _SOFTWARE}


def _environment(cpu_threads: int) -> dict[str, str]:
    return _versions() | {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": str(os.cpu_count()),
        "threads": str(cpu_threads),
    }

