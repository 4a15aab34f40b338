"""The sentences of a report: what a thief gets at what price, and what does not hold or was not measured."""

from __future__ import annotations

from collections.abc import Sequence

from garrison.attacks.base import Finding, View
from garrison.attacks.measures import FEWEST_SEEDS
from garrison.audit.arms import Arms
from garrison.audit.data import AuditData
from garrison.audit.plan import Plan
from garrison.audit.targets import TargetName

_CLOSER_THIEVES = (
    "A thief with in-distribution data, or one who starts from a few such rows (JBDA), was not tried. Adaptive Misinformation "
    "does not stop them: their questions look honest."
)
_NAIVE = (
    "The thief is naive: it does not look for misinformed answers, average repetitions, or drop what looks out of distribution. "
    "One account asked; Sybil accounts and cover traffic were not tried."
)


def share(value: float) -> str:
    """A share as percent with one decimal."""
    return f"{100 * value:.1f} %"


def money(usd: float) -> str:
    return f"${usd:,.2f}"


def headline(plan: Plan, data: AuditData, findings: Sequence[Finding], controls: Sequence[Finding]) -> str:
    """What a thief gets from the service at what price, beside what the undefended model and chance give."""
    mine = [
        f for f in findings if f.target == TargetName.DEFENDED and f.metric == "clone_accuracy" and f.value is not None
    ]
    if not mine:
        return "No clone was trained against the service."
    best = max(mine, key=lambda f: (f.budget, f.answers == View.SOFT))
    bought = f"{best.queries:,} queries at {money(plan.usd_per_1000_queries)} per 1,000"
    text = (
        f"For {money(best.cost_usd)} ({bought}), a thief who asks {data.surrogate.source} gets from the service a clone that is "
        f"right on {_valued(best)} of {data.test.source}; {_chance(best, controls)}."
    )
    others = [
        f"{share(f.value)} from {_the(f.target)}"
        for f in findings
        if f.target != best.target
        and (f.metric, f.answers, f.budget) == (best.metric, best.answers, best.budget)
        and f.value is not None
    ]
    return f"{text} The same money buys {' and '.join(others)}." if others else text


def _valued(finding: Finding) -> str:
    value = share(finding.value or 0.0)
    if finding.low is None or finding.high is None:
        return value
    return f"{value} ({100 * finding.low:.1f} to {share(finding.high)})"


def _chance(best: Finding, controls: Sequence[Finding]) -> str:
    parts = [] if best.chance is None else [f"a constant answer is right on {share(best.chance)}"]
    control = next((c for c in controls if (c.metric, c.budget) == (best.metric, best.budget)), None)
    if control is not None and control.value is not None:
        parts.append(f"a clone trained on random labels on {share(control.value)}")
    return ", ".join(parts) or "chance is not known"


def _the(target: str) -> str:
    return (
        "the undefended model" if target == TargetName.UNDEFENDED else "the model trained with outlier exposure alone"
    )


def limits(plan: Plan, arms: Arms, data: AuditData, findings: Sequence[Finding], asked: int) -> tuple[str, ...]:
    """What does not hold or was not measured, in plain sentences.

    Args:
        asked: rows that the service was asked in all.
    """
    return (
        *_missing_arms(arms),
        *_not_tried(plan, data),
        *_how_sure(plan, findings),
        *_service(arms, findings, asked),
    )


def _missing_arms(arms: Arms) -> list[str]:
    found = []
    if arms.f is None:
        found.append(
            "Fidelity, the undefended arm, the cost of the guard and similarity are left out: no reference was given "
            "(--reference BUNDLE, --baseline BUNDLE)."
        )
    elif arms.undefended is None:
        found.append(
            "The undefended arm is left out: the reference was trained with outlier exposure, and no plain model was given "
            "(--baseline BUNDLE). Fidelity and similarity are measured against the sealed model without its guard."
        )
    elif arms.undefended is not arms.reference and arms.reference is not None:
        found.append(
            "Fidelity is agreement with the plain model. It and the sealed model differ on some inputs, so even a perfect "
            "clone of the sealed model does not reach 100 %."
        )
    if arms.f is not None and arms.exposure is None:
        found.append("There is no outlier-exposure arm: no reference that was trained with outlier exposure was given.")
    if arms.reference is None and arms.f is not None:
        found.append("What the guard alone costs, and similarity over tau, are left out: no --reference was given.")
    if arms.reference is not None and arms.key is None:
        found.append(
            "The similarity sweep drew its misinformation with a stand-in key; which wrong class is answered depends on "
            "the key, how often one is answered does not."
        )
    return found


def _not_tried(plan: Plan, data: AuditData) -> list[str]:
    names = sorted({attack.name for attack in plan.attacks})
    source = data.surrogate.source
    return [
        f"Only {', '.join(names)} was tried, with surrogate rows from {source}. Other rows may do better; closer ones do.",
        _CLOSER_THIEVES,
        _NAIVE,
        "Latency and processor time were not measured.",
    ]


def _how_sure(plan: Plan, findings: Sequence[Finding]) -> list[str]:
    found = []
    if len(plan.seeds) < FEWEST_SEEDS:
        found.append(
            f"Clones were trained with {len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}: their intervals cover the "
            "choice of test rows, not another training run, which moves a clone's accuracy by several points."
        )
    if any(not finding.complete for finding in findings):
        found.append(
            "Some questions were lost to failures of the connection or the service; those findings are marked."
        )
    return found


def _service(arms: Arms, findings: Sequence[Finding], asked: int) -> list[str]:
    found, identity = [], arms.defended.identity
    if not arms.defended.facts.soft:
        found.append(
            "The service releases labels alone, so its soft-label rows, calibration error and L1 change are left out."
        )
    if identity.where == "in-process":
        found.append(
            "The service was asked in this process; its transport, keys and quotas were not part of the audit."
        )
    else:
        found.append("What the service says of itself (model, digests) was not attested.")
    if identity.overridden:
        found.append("The release policy was changed for this audit; the signed one was not measured.")
    reference = arms.reference
    if reference is not None and identity.manifest_digest not in {"", reference.identity.manifest_digest}:
        found.append("The reference is another sealed bundle than the one that the service says it serves.")
    if 0 < identity.budget_rows < asked:
        found.append(
            f"The service answers a caller {identity.budget_rows:,} rows and was asked {asked:,}: rows beyond the budget count "
            "as unanswered."
        )
    if any(f.metric == "unanswered" and f.target == TargetName.DEFENDED for f in findings):
        found.append("Some test rows got no answer, or an uncertain one; they count as wrong in the served accuracy.")
    return found
