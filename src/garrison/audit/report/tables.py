"""The tables of a report, as text; the page and the terminal show the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from garrison.attacks.base import NAIVE, Finding
from garrison.audit.report.content import Report

TITLES = {
    "undefended": "undefended",
    "outlier-exposure": "outlier exposure only",
    "defended": "defended, as served",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A value, and its interval or remark in small."""

    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a line of explanation; the first cell of a row names it."""

    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


NOTHING = Cell("–")


def shown(finding: Finding | None, *, points: bool = False) -> Cell:
    """A finding as a cell: shares as percent, differences of shares as points.

    Args:
        points: the value is a difference of shares.
    """
    if finding is None:
        return NOTHING
    mark = "" if finding.complete else " (incomplete)"
    if finding.value is None:
        return Cell("not reached")
    if finding.unit == "fraction":
        span = (
            ""
            if finding.low is None or finding.high is None
            else f"{100 * finding.low:.1f} to {100 * finding.high:.1f}"
        )
        return Cell(f"{100 * finding.value:.1f} {'points' if points else '%'}{mark}", span)
    if finding.unit == "L1 distance":
        span = "" if finding.low is None or finding.high is None else f"{finding.low:.3f} to {finding.high:.3f}"
        return Cell(f"{finding.value:.3f}{mark}", span)
    return Cell(f"{finding.value:,.0f}{mark}", "")


_CLONES = ("clone_accuracy", "fidelity")
"""How a clone is graded; by the second alone where the test rows have no classes."""


def largest_budget(report: Report, answers: str, metrics: tuple[str, ...] = _CLONES) -> int:
    """The largest budget that the main attack tried with such answers, else the control; 0 for none."""
    mine = [f for f in report.findings if (f.attack, f.tactic) == (report.main_attack, NAIVE)]
    for tried in (mine, report.controls):
        found = [f.budget for f in tried if f.answers == answers and f.metric in metrics]
        if found:
            return max(found)
    return 0


def trade_off(report: Report) -> Table:
    """What each arm costs its users and gives a thief (facts of the paper's trade-off, one row an arm)."""
    soft, labels = largest_budget(report, "soft"), largest_budget(report, "labels")
    head = (
        "",
        "served accuracy",
        "loss against undefended",
        *(f"clone, {soft:,} soft: {what}" for what in ("accuracy", "fidelity")),
        *(f"clone, {labels:,} labels: {what}" for what in ("accuracy", "fidelity")),
        "price of the queries",
    )
    rows = [_arm(report, target, soft, labels) for target in TITLES if target in report.targets]
    rows += [_control(report, soft, labels)] if report.controls else []
    caption = (
        f"The clones are those of {report.main_attack}. Clone accuracy: share of test rows that a clone gets right. Fidelity: share on "
        "which it agrees with the undefended model."
    )
    told = [
        i for i in range(len(head)) if i == 0 or any(row[i] != NOTHING for row in rows)
    ]  # a table may have no classes
    return Table(
        "What a thief gets, and what it costs honest users",
        caption,
        tuple(head[i] for i in told),
        tuple(tuple(row[i] for i in told) for row in rows),
    )


def _arm(report: Report, target: str, soft: int, labels: int) -> tuple[Cell, ...]:
    def clone(metric: str, answers: str, budget: int) -> Finding | None:
        return report.find(target, metric, answers=answers, budget=budget)

    tries = [clone(metric, *how) for how in (("soft", soft), ("labels", labels)) for metric in _CLONES]
    asked = next((found for found in tries if found is not None), None)
    return (
        Cell(TITLES[target]),
        shown(report.find(target, "served_accuracy")),
        shown(report.find(target, "benign_loss_total"), points=True),
        shown(clone("clone_accuracy", "soft", soft)),
        shown(clone("fidelity", "soft", soft)),
        shown(clone("clone_accuracy", "labels", labels)),
        shown(clone("fidelity", "labels", labels)),
        NOTHING if asked is None else Cell(f"${asked.cost_usd:,.2f}", f"{asked.queries:,} queries"),
    )


def _control(report: Report, soft: int, labels: int) -> tuple[Cell, ...]:
    def clone(metric: str, budget: int) -> Cell:
        return shown(report.find("none", metric, answers="labels", budget=budget, control=True))

    cells = [clone(metric, budget) for budget in (soft, labels) for metric in ("clone_accuracy", "fidelity")]
    return (Cell("control: random labels"), NOTHING, NOTHING, *cells, Cell("$0.00", "0 queries"))


def honest(report: Report) -> Table:
    """What honest users get."""
    columns = {
        "served_accuracy": ("accuracy", False),
        "benign_loss_guard": ("lost to the guard", True),
        "benign_loss_total": ("lost against undefended", True),
        "changed_top1_guard": ("first class changed by the guard", False),
        "changed_top1_total": ("first class unlike undefended", False),
        "mean_l1_guard": ("mean L1 change by the guard", False),
        "mean_l1_total": ("mean L1 unlike undefended", False),
        "calibration_error": ("calibration error", False),
        "unanswered": ("unanswered", False),
    }
    caption = "On the test rows. Losses are paired: the same rows, before and after. Calibration error: 15 bins."
    return _by_target(report, "Honest users", caption, columns)


def strangers(report: Report) -> Table:
    """What inputs that are not the model's business are answered with."""
    columns = {
        "outside_changed_top1_guard": ("first class changed by the guard", False),
        "outside_changed_top1_total": ("first class unlike undefended", False),
        "outside_classes_used": ("classes used", False),
        "outside_entropy": ("entropy of the classes", False),
        "repeated_alike": ("same answer when asked again", False),
    }
    source = report.data["outside"].source
    caption = f"On rows of {source}. Entropy: 100 % where all classes are answered equally often."
    return _by_target(report, "Strangers' inputs", caption, columns)


def reaching(report: Report) -> Table:
    """How few queries reach a fidelity, by the attack that needs fewest."""
    columns = {f"queries_to_fidelity_{level}": f"fidelity {level}" for level in ("0.90", "0.95", "0.99")}
    rows = []
    for target, name in TITLES.items():
        found = [[f for f in report.findings if (f.target, f.metric) == (target, m)] for m in columns]
        if any(found):
            rows.append((Cell(name), *(_cheapest(fs) for fs in found)))
    caption = "The fewest of the tried budgets, and the attack that needs them."
    return Table("Queries to a fidelity", caption, ("", *columns.values()), tuple(rows))


def _cheapest(found: Sequence[Finding]) -> Cell:
    reached = [f for f in found if f.value is not None]
    if not reached:
        return Cell("not reached") if found else NOTHING
    best = min(reached, key=lambda f: f.value or 0.0)
    return Cell(f"{best.value:,.0f}", f"{_thief(best)}, {best.answers}")


def _thief(f: Finding) -> str:
    return f.attack if f.tactic == NAIVE else f"{f.attack} + {f.tactic}"


def thieves(report: Report, *, brief: bool = False) -> Table:
    """Every attack that was carried out, the nearest clone of the service first.

    Args:
        brief: the first of fidelity and clone accuracy that there is, alone.
    """
    metrics = [m for m in _GRADES if any(f.metric == m for f in report.findings)]
    metrics = [next((m for m in ("fidelity", "clone_accuracy") if m in metrics), "")] if brief else metrics
    arms = [target for target in TITLES if target in report.targets]
    tries: dict[tuple[str, str, str, int], dict[tuple[str, str], Finding]] = {}
    for f in report.findings:
        if f.metric in _GRADES:
            tries.setdefault((f.attack, f.tactic, f.answers, f.budget), {})[f.target, f.metric] = f
    by = "fidelity" if "fidelity" in metrics else "clone_accuracy"

    def worth(found: dict[tuple[str, str], Finding]) -> float:
        mine = found.get(("defended", by))
        return -1.0 if mine is None or mine.value is None else mine.value

    ordered = sorted(tries.items(), key=lambda item: -worth(item[1]))
    rows = [
        (
            Cell(key[0], f"with {key[1]}" if key[1] != NAIVE else ""),
            Cell(key[2]),
            *_price(found),
            *(shown(found.get((target, metric))) for metric in metrics for target in arms),
        )
        for key, found in ordered
    ]
    head = ("", "answers", "queries", "price", *(f"{_GRADES[m]}, {TITLES[t]}" for m in metrics for t in arms))
    caption = "One row for each attack, set of tactics and budget. Queries are rows asked of one target for one seed, cover traffic left out."
    return Table("What each thief gets", caption, head, tuple(rows))


_GRADES = {"clone_accuracy": "clone accuracy", "fidelity": "fidelity", "uniform_fidelity": "uniform fidelity"}


def _price(found: Mapping[tuple[str, str], Finding]) -> tuple[Cell, Cell]:
    f = max(found.values(), key=lambda f: f.queries)
    most = max(each.unanswered for each in found.values())
    notes = [f"{f.cover:,} of cover"] if f.cover else []
    notes += [f"{most:,} unanswered"] if most else []
    return Cell(f"{f.queries:,}", ", ".join(notes)), Cell(f"${f.cost_usd:,.2f}")


def left_out(report: Report) -> Table:
    """What the plan names and was not carried out."""
    by: dict[tuple[str, str], list[str]] = {}
    for item in report.left_out:
        by.setdefault((item.attack, item.why), []).append(TITLES.get(item.target, item.target))
    rows = tuple((Cell(attack), Cell(", ".join(targets)), Cell(why)) for (attack, why), targets in by.items())
    return Table("What was left out", "Named by the plan and not carried out.", ("", "target", "why"), rows)


def told(report: Report) -> Table:
    """What attacks say of themselves."""
    rows = tuple(
        (
            Cell(t.attack, t.tactic if t.tactic != NAIVE else ""),
            Cell(TITLES.get(t.target, t.target)),
            Cell(f"{t.budget:,}"),
            Cell(t.what.replace("_", " ")),
            Cell(f"{t.value:,.6g}"),
        )
        for t in report.told
    )
    caption = "Not measured by the audit; the mean over seeds."
    return Table("What the attacks say of themselves", caption, ("", "target", "budget", "what", "value"), rows)


def _by_target(report: Report, title: str, caption: str, columns: dict[str, tuple[str, bool]]) -> Table:
    there = {m: c for m, c in columns.items() if any(f.metric == m for f in report.findings)}
    targets = report.targets if report.evasions else [target for target in TITLES if target in report.targets]
    rows = tuple(
        (
            Cell(TITLES.get(target, target)),
            *(shown(report.find(target, m), points=points) for m, (_, points) in there.items()),
        )
        for target in targets
    )
    return Table(title, caption, ("", *(text for text, _ in there.values())), rows)
