"""The sentences of a report: what a thief gets at what price, and what does not hold or was not measured."""

from __future__ import annotations

from collections.abc import Sequence

from garrison.attacks.base import NAIVE, Finding
from garrison.attacks.measures import FEWEST_SEEDS
from garrison.audit.arms import Arms
from garrison.audit.data import AuditData
from garrison.audit.grid import arm_named
from garrison.audit.plan import Plan
from garrison.audit.report.content import LeftOut
from garrison.audit.targets import TargetName
from garrison.errors import AttackFailedError, AuditSpentError

_CLOSER_THIEVES = (
    "A thief with in-distribution data, or one who starts from a few such rows (JBDA), was not tried. Adaptive Misinformation "
    "does not stop them: their questions look honest."
)
_NAIVE = "The thief is naive: it does not look for misinformed answers, average repetitions, or drop what looks out of distribution."
_ALONE = "One account asked; Sybil accounts and cover traffic were not tried."
_DRAWN = "The plan's {} rows do not fit this model and were replaced by rows drawn evenly from the stated range of its inputs."
_KNOWING = {"defense-aware", "repeats", "drop-suspicious", "restore-bayes", "restore-network", "top-1"}
_STARTS_CLOSE = {"activethief", "cloudleak", "jbda", "jbda-tr"}
_STARTS_LABELLED = ("cloudleak", "jbda")
_ASKS_NOBODY = "seeds-alone"


def share(value: float) -> str:
    """A share as percent with one decimal."""
    return f"{100 * value:.1f} %"


def money(usd: float) -> str:
    return f"${usd:,.2f}"


def headline(plan: Plan, data: AuditData, findings: Sequence[Finding], controls: Sequence[Finding]) -> str:
    """What a thief gets from the service at what price, beside what the undefended model and chance give.

    See `best_clone` for which thief that is. Where the test rows have classes its clone's accuracy is told, and its fidelity with it.
    """
    nearest = best_clone(findings)
    if nearest is None:
        return "Nothing was stolen from the service: no attack of the plan could be carried out against it."
    right = (f for f in findings if f.target == nearest.target and _same_try(f, nearest, "clone_accuracy"))
    best = next((f for f in right if f.value is not None), nearest)
    also = "" if best is nearest else f" and {_MEANS[nearest.metric]} {_valued(nearest)}"
    paid = f"{best.queries + best.cover:,} queries at {money(plan.usd_per_1000)} per 1,000"
    tried = {(f.attack, f.tactic) for f in findings if f.metric == best.metric and f.target == best.target}
    how = best.attack if best.tactic == NAIVE else f"{best.attack} with {best.tactic}"
    rows = data.test.source
    text = (
        f"For {money(best.cost_usd)} ({paid}), a thief gets from the service a clone that {_MEANS[best.metric]} {_valued(best)}{also} of "
        f"{rows}, by {how}{', the best of ' + str(len(tried)) + ' ways tried' if len(tried) > 1 else ''}; "
        f"{_chance(best, controls)}."
    )
    others = [
        f"{share(f.value)} from {_the(f.target)}"
        for f in findings
        if f.target in _BARE and _same_try(f, best, best.metric) and f.value is not None
    ]
    text += f" The same money buys {' and '.join(others)}." if others else ""
    return text + _before(plan, data, best, findings)


def _before(plan: Plan, data: AuditData, best: Finding, findings: Sequence[Finding]) -> str:
    """What the thief had before the first question, rows of the model's own kind; and what it would get of them without a question."""
    labelled = best.attack.startswith(_STARTS_LABELLED)
    if data.own is None or not (labelled or "in-distribution" in best.tactic.split(" + ")):
        return ""
    mine = [f for f in findings if (f.attack, f.target, f.metric) == (_ASKS_NOBODY, best.target, best.metric)]
    text = f" This thief had rows of the model's own kind ({data.own.source})"
    if labelled and mine and mine[0].value is not None:
        text += f"; the {plan.labelled_rows} that it labelled by hand give {share(mine[0].value)} without a question"
    return f"{text}."


_MEANS = {
    "clone_accuracy": "is right on",
    "fidelity": "answers as the undefended model on",
    "uniform_fidelity": "answers as the undefended model on",
}
_AS_GOOD, _OF_THE_REST = 0.005, 0.1


def best_clone(findings: Sequence[Finding]) -> Finding | None:
    """The nearest clone of the service, and of those as good the cheapest; None where there is none.

    The nearest has the highest fidelity, where that was not measured the highest accuracy. As good is what falls short of it by at most
    half a point and a tenth of what it lacks itself: nothing is as good as the whole model.
    """
    # What asks nothing, such as the rows that a thief labelled by hand, is no theft.
    asking = [f for f in findings if f.queries and f.value is not None and f.target == TargetName.DEFENDED]
    for metric in ("fidelity", "clone_accuracy"):
        mine = [f for f in asking if f.metric == metric]
        if mine:
            most = max(f.value or 0.0 for f in mine)
            least = most - min(_AS_GOOD, _OF_THE_REST * (1.0 - most))
            return min(
                (f for f in mine if (f.value or 0.0) >= least), key=lambda f: (f.cost_usd, f.queries, -(f.value or 0.0))
            )
    return None


def _same_try(a: Finding, b: Finding, metric: str) -> bool:
    """Whether a has that metric and is of the same try as b, against this or another target."""
    same = (a.attack, a.tactic, a.answers, a.budget) == (b.attack, b.tactic, b.answers, b.budget)
    return same and a.metric == metric


def _valued(finding: Finding) -> str:
    value = share(finding.value or 0.0)
    if finding.low is None or finding.high is None:
        return value
    return f"{value} ({100 * finding.low:.1f} to {share(finding.high)})"


def _chance(best: Finding, controls: Sequence[Finding]) -> str:
    does = "is right" if best.metric == "clone_accuracy" else "agrees"
    parts = [] if best.chance is None else [f"a constant answer {does} on {share(best.chance)}"]
    mine = [c for c in controls if c.metric == best.metric]
    # The control of the same size, else the largest one.
    control = max(mine, key=lambda c: (c.budget == best.budget, c.budget), default=None)
    if control is not None and control.value is not None:
        parts.append(f"a clone trained on random labels on {share(control.value)}")
    return ", ".join(parts) or "chance is not known"


_BARE = (TargetName.UNDEFENDED, TargetName.EXPOSURE)


def _the(target: str) -> str:
    return (
        "the undefended model" if target == TargetName.UNDEFENDED else "the model trained with outlier exposure alone"
    )


def limits(
    plan: Plan, arms: Arms, data: AuditData, findings: Sequence[Finding], asked: int, left_out: Sequence[LeftOut] = ()
) -> tuple[str, ...]:
    """What does not hold or was not measured, in plain sentences.

    Args:
        asked: rows that the service was asked in all.
        left_out: what was not carried out.
    """
    return (
        *cut_short(left_out),
        *failed(left_out),
        *_missing_arms(arms),
        *(_not_tried(arms, data, findings) if plan.attacks else ()),
        *_how_sure(plan, findings),
        *_of_table(plan, arms),
        *_service(arms, findings, asked),
    )


def cut_short(left_out: Sequence[LeftOut]) -> list[str]:
    """What was not tried on the service because the audit's minutes, rows or dollars were used up; at most one sentence."""
    mine = [item for item in left_out if item.target == TargetName.DEFENDED and item.code == AuditSpentError.code]
    if not mine:
        return []
    which = "; ".join(item.attack for item in mine)
    return [f"This audit stopped early ({mine[0].why}). Not tried: {which}. The same command goes on from here."]


def failed(left_out: Sequence[LeftOut]) -> list[str]:
    """Attacks that ended with an error of their own: the service has not withstood them."""
    which = "; ".join(f"{item.attack} on {item.target}" for item in left_out if item.code == AttackFailedError.code)
    return (
        [f"Failed with an error of their own, and so not graded: {which}. The same command tries them again."]
        if which
        else []
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
    if arms.reference is not None and arms.key is None and not arms.reference.facts.regression and not arms.others:
        found.append(
            "The similarity sweep drew its misinformation with a stand-in key; which wrong class is answered depends on "
            "the key, how often one is answered does not."
        )
    return found


def _not_tried(arms: Arms, data: AuditData, findings: Sequence[Finding]) -> list[str]:
    names = sorted({f.attack for f in findings} - {"none"}) or ["nothing"]
    tactics = {name for f in findings for name in f.tactic.split(" + ")}
    asked = f"Only {', '.join(names)} {'was' if len(names) == 1 else 'were'} tried, with surrogate rows from {data.surrogate.source}."
    found = [f"{asked} Other rows may do better; closer ones do."]
    found += [_DRAWN.format(role) for role in data.replaced]
    found += (
        []
        if data.own is not None and (tactics & {"in-distribution"} or _STARTS_CLOSE & {*names})
        else [_CLOSER_THIEVES]
    )
    found += [] if tactics & _KNOWING else [_NAIVE]
    found += [] if tactics & {"sybil", "cover-traffic"} else [_ALONE]
    if arms.defended.facts.regression:
        found.append(
            "The model is a regressor: what honest users get, and similarity, are measured for classifiers only."
        )
    elif data.test.y is None:
        found.append(
            f"The test rows ({data.test.source}) carry no classes: accuracy and calibration error are left out."
        )
    return [*found, "Latency and processor time were not measured."]


def _how_sure(plan: Plan, findings: Sequence[Finding]) -> list[str]:
    found = []
    if plan.attacks and len(plan.seeds) < FEWEST_SEEDS:
        found.append(
            f"Clones were trained with {len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}: their intervals cover the "
            "choice of test rows, not another training run, which moves a clone's accuracy by several points."
        )
    if any(not finding.complete for finding in findings):
        found.append(
            "Some questions were lost to failures of the connection or the service; those findings are marked."
        )
    return found


def _of_table(plan: Plan, arms: Arms) -> list[str]:
    if not plan.columns:
        return []
    budgets = ", ".join(f"{a.label or a.name} {max(a.budgets, default=0):,}" for a in plan.attacks)
    found = [
        f"The table says what these numbers of questions buy ({budgets}), from this surrogate set and with these trainings; more buy more.",
        "Defense-aware is one tactic for each arm, the one that its plan names. A thief may know a better one.",
        "Similarity over tau was left out.",
    ]
    few = [name for name in arms.targets() if len(arm_named(plan.arms, name).seeds or plan.seeds) < FEWEST_SEEDS]
    if few and len(plan.seeds) >= FEWEST_SEEDS:
        found.append(f"These arms were attacked with fewer than {FEWEST_SEEDS} seeds: {', '.join(few)}.")
    found += [f"Left out: {name}: {why}." for name, why in arms.missing.items()]
    return found


def _service(arms: Arms, findings: Sequence[Finding], asked: int) -> list[str]:
    found, identity = [], arms.defended.identity
    facts = arms.defended.facts
    if not (facts.soft or facts.scores or facts.regression):
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
        keys = facts.accounts
        shared = "one API key" if keys == 1 else f"{keys} API keys in turn"
        found.append(
            f"The service answers a caller {identity.budget_rows:,} rows and was asked {asked:,} with {shared}: rows beyond the budget count "
            "as unanswered, and an attack whose key was used up before it gets less than a thief with a key of its own. Audit the bundle in "
            "this process to see what a number of answers buys."
        )
    if any(f.metric == "unanswered" and f.target == TargetName.DEFENDED for f in findings):
        found.append("Some test rows got no answer, or an uncertain one; they count as wrong in the served accuracy.")
    return found
