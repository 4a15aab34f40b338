"""A budget for one model, from a report on it: how many answers a thief needs, and a share of that for each caller.

    found = derive(parse(data), model_digest, answers_digest, fidelity=0.9, margin=0.5)

1  the arms     those that answer as the service will; where the report has none, the model without a guard, which gives away more
2  each thief   one curve of fidelity over queries for each attack, tactic and kind of answers, at the upper end of its interval
3  the queries  where the first curve reaches the fidelity: between two budgets that were tried, straight over the logarithm of queries
4  the budget   the margin times that

Does not check: whether a better thief exists than those that were tried, or a caller asks under several names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from garrison.attacks.base import Finding
from garrison.audit.report.content import Report
from garrison.errors import WrongReportError

FIDELITY = 0.9
MARGIN = 0.5
UNGUARDED = ("release",)
IN_DISTRIBUTION, TEST, OUTSIDE = "in-distribution", "test", "outside"


@dataclass(frozen=True, slots=True)
class Reached:
    """Where a thief's curve reaches a fidelity, or how far it was followed.

    Attributes:
        thief: attack, tactic and kind of answers, in words.
        queries: rows asked until then; the most that were tried where it was not reached.
        reached: whether it was.
        first: whether the fewest queries that were tried reached it already, so that it may take fewer.
        best: the highest mean fidelity of the curve.
    """

    thief: str
    queries: float
    reached: bool
    first: bool
    best: float


@dataclass(frozen=True, slots=True)
class DerivedBudget:
    """What to allow each caller.

    Attributes:
        rows: at least 1.
        queries: after which a clone has the fidelity; where none reached it, the most that were tried.
        reached: whether one did.
        arm: of the report, on which it was measured.
        as_served: whether that arm answers as the service will; else it is the model without a guard.
        thief: who needs the fewest.
        fidelity, margin: as asked.
        notes: what the owner should know, in plain sentences.
    """

    rows: int
    queries: float
    reached: bool
    arm: str
    as_served: bool
    thief: str
    fidelity: float
    margin: float
    notes: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """For the manifest."""
        what = "budget_queries_to_fidelity" if self.reached else "budget_most_queries_tried_below_fidelity"
        return {f"{what}_{self.fidelity:.2f}": self.queries, "budget_margin": self.margin}


def derive(
    report: Report, model_digest: str, answers_digest: str, *, fidelity: float = FIDELITY, margin: float = MARGIN
) -> DerivedBudget:
    """The budget.

    Args:
        report: of an audit.
        model_digest: of the model that is sealed (`Manifest.model_digest`).
        answers_digest: of model and guard (`Manifest.answers_digest`).
        fidelity: that no clone may reach, in (0, 1].
        margin: share of the queries, in (0, 1].

    Raises:
        WrongReportError: the report is not about this model, or holds no thief of it.
        ValueError: fidelity or margin are not what they must be.
    """
    if not 0 < fidelity <= 1 or not 0 < margin <= 1:
        raise ValueError(f"fidelity and margin must lie in (0, 1], found {fidelity} and {margin}")
    # 1 the arms
    arms, as_served = _arms(report, model_digest, answers_digest)
    # 2 each thief
    curves = [reached(arm, points, fidelity) for arm in arms for points in _curves(report, arm)]
    if not curves:
        raise WrongReportError(
            f"the report measures no clone's fidelity on {', '.join(arms)}: audit with --reference BUNDLE"
        )
    # 3 the queries
    arm, first = min(
        curves, key=lambda pair: (not pair[1].reached, pair[1].queries if pair[1].reached else -pair[1].queries)
    )
    # 4 the budget
    queries = round(first.queries, 1)
    rows = max(1, math.floor(margin * queries))
    others = [found for _, found in curves]
    return DerivedBudget(
        rows,
        queries,
        first.reached,
        arm,
        as_served,
        first.thief,
        fidelity,
        margin,
        _notes(report, first, others, rows, arm=arm, as_served=as_served, fidelity=fidelity, margin=margin),
    )


def _arms(report: Report, model_digest: str, answers_digest: str) -> tuple[list[str], bool]:
    cards = report.targets
    mine = [name for name, card in cards.items() if card.model_digest and card.model_digest == model_digest]
    if not mine:
        known = sorted({f"{card.model!r} ({card.model_digest[:12] or 'digest not told'})" for card in cards.values()})
        raise WrongReportError(
            f"the report is about another model: it has {', '.join(known)}, and this one is {model_digest[:12]}; audit the "
            "service of this model, with --reference BUNDLE"
        )
    served = [name for name in mine if cards[name].answers_digest == answers_digest]
    if served:
        return served, True
    plain = [name for name in mine if cards[name].chain == UNGUARDED]
    if not plain:
        raise WrongReportError(
            "the report attacks this model behind another guard than it will have, and not without one, so nothing follows for "
            "this guard: audit with --reference BUNDLE, or a bundle with this guard"
        )
    return plain, False


def _curves(report: Report, arm: str) -> list[list[Finding]]:
    """The findings of each thief, fewest queries first."""
    found: dict[tuple[str, str, str], list[Finding]] = {}
    for f in report.findings:
        if (f.target, f.metric) == (arm, "fidelity") and f.value is not None and f.queries > 0:
            found.setdefault((f.attack, f.tactic, f.answers), []).append(f)
    return [sorted(points, key=lambda f: f.queries + f.cover) for points in found.values()]


def reached(arm: str, points: Sequence[Finding], fidelity: float) -> tuple[str, Reached]:
    """Where one curve reaches the fidelity. Cover traffic is counted: a budget counts it too."""
    thief = f"{points[0].attack}, {points[0].tactic}, {points[0].answers}"
    best = max(f.value or 0.0 for f in points)
    before: tuple[float, float] | None = None
    for f in points:
        asked, height = float(f.queries + f.cover), max(f.value or 0.0, f.high or 0.0)
        if height >= fidelity:
            if before is None or height <= before[1]:
                return arm, Reached(thief, asked, reached=True, first=True, best=best)
            share = (fidelity - before[1]) / (height - before[1])
            between = math.exp(math.log(before[0]) + share * (math.log(asked) - math.log(before[0])))
            return arm, Reached(thief, between, reached=True, first=False, best=best)
        before = asked, height
    last = points[-1]
    return arm, Reached(thief, float(last.queries + last.cover), reached=False, first=False, best=best)


def _notes(
    report: Report,
    first: Reached,
    others: Sequence[Reached],
    rows: int,
    *,
    arm: str,
    as_served: bool,
    fidelity: float,
    margin: float,
) -> tuple[str, ...]:
    share = f"{margin:g} times "
    if first.reached:
        head = f"budget of {rows:,} rows a caller: {share}the {first.queries:,.0f} answers after which a clone reaches fidelity {fidelity:g} ({first.thief}; arm {arm!r})"
    else:
        head = (
            f"budget of {rows:,} rows a caller: no clone reached fidelity {fidelity:g}, so that is {share}the {first.queries:,.0f} answers of the dearest "
            f"thief that was tried (best {max(o.best for o in others):.3f}; arm {arm!r}). How many it would take is not known, only that it is more"
        )
    found = [head]
    if not as_served:
        found.append(
            "the report has no arm with this guard: measured on the model without a guard, which gives away more"
        )
    if first.first:
        found.append("the fewest answers that were tried reach it already, and fewer might: audit smaller budgets")
    short = [o for o in others if not o.reached and o.queries < first.queries]
    if first.reached and short:
        found.append(
            f"{len(short)} thieves were tried with fewer answers only; what they would reach with more is not known"
        )
    if not _has_own_rows(report):
        found.append(
            "no thief of the report had rows of the model's own kind, by the names of its data; such a one needs the fewest answers"
        )
    return tuple(found)


def _has_own_rows(report: Report) -> bool:
    """Whether some thief asked rows of the data set that the model is tested on."""
    kind = {role: card.source.partition(":")[0] for role, card in report.data.items()}
    asked = {name for role, name in kind.items() if role not in {TEST, OUTSIDE}}
    return IN_DISTRIBUTION in report.data or kind.get(TEST, "") in asked
