"""The table of a plan as the page, the terminal and the documents show it: what each arm costs, and each thief against each arm."""

from __future__ import annotations

from collections.abc import Sequence

from garrison.attacks.base import Finding
from garrison.audit.report.content import AlarmCard, ParetoPoint, Report, TableCell
from garrison.audit.report.tables import NOTHING, TITLES, Cell, Table, shown

ALL_THIEVES = ""


def title_of(arm: str) -> str:
    """An arm as a report names it."""
    return {**TITLES, "defended": "the chain, as served"}.get(arm, arm)


def arms_of(report: Report) -> tuple[str, ...]:
    """The arms of the table, in its order."""
    return tuple(dict.fromkeys(cell.arm for cell in report.cells))


def arms(report: Report) -> Table:
    """What each arm costs honest users, and the best clone of all cells that are filled."""
    head = (
        "",
        "served accuracy",
        "lost to the guard",
        "mean L1 change",
        "honest callers alarmed",
        "best clone",
        "cells filled",
    )
    rows = [_arm(report, arm) for arm in arms_of(report)]
    caption = (
        "On the test rows. Mean L1 change: of the answer, by the guard, 0 to 2. Honest callers ask 500 test rows each. The best clone is that of all "
        "cells that are filled, and an arm that was tried more often has a better one."
    )
    return Table("What each arm costs, and gives away", caption, head, tuple(rows))


def _arm(report: Report, arm: str) -> tuple[Cell, ...]:
    mine = [cell for cell in report.cells if cell.arm == arm]
    known = [cell for cell in mine if cell.clone_accuracy is not None]
    count = Cell(f"{len(known)} of {len(mine)}")
    if arm in report.missing:
        return (Cell(title_of(arm), report.missing[arm]), *(NOTHING,) * 5, count)

    def served(metric: str, *, points: bool = False) -> Cell:
        return shown(report.find(arm, metric), points=points)

    best = max(known, key=lambda cell: cell.clone_accuracy.value if cell.clone_accuracy else 0.0, default=None)
    chain = None if arm not in report.targets else report.targets[arm].chain
    return (
        Cell(title_of(arm), "" if chain is None else ", ".join(chain)),
        served("served_accuracy"),
        served("benign_loss_guard", points=True),
        served("mean_l1_guard"),
        served("honest_callers_alarmed"),
        NOTHING if best is None else Cell(_percent(best), f"{best.thief}, {best.column}"),
        count,
    )


def thieves_of(report: Report) -> tuple[str, ...]:
    """The thieves of the table, in its order."""
    return tuple(dict.fromkeys(cell.thief for cell in report.cells))


def cells(report: Report, thief: str, *, brief: bool = False) -> Table:
    """One thief against every arm, by what it does who knows them.

    Args:
        report: with a table.
        thief: which.
        brief: clone accuracy and the alarm alone.
    """
    mine = [cell for cell in report.cells if cell.thief == thief]
    columns = tuple(dict.fromkeys(cell.column for cell in mine))
    # An arm without a single filled cell has one line in the table of arms.
    full = [arm for arm in arms_of(report) if any(c.arm == arm and c.clone_accuracy for c in mine)]
    rows = tuple((Cell(title_of(arm)), *(_cell(cell, brief=brief) for cell in mine if cell.arm == arm)) for arm in full)
    return Table(f"The thief: {thief}", _caption(report, mine), ("", *columns), rows)


_IN_A_CELL = (
    "Accuracy of the clone on the test rows, and in small its interval, its fidelity, the fewest of the tried queries to fidelity 0.9, rows asked of the "
    "service and their price, and after how many of the thief's own rows the first alarm rang."
)


def _caption(report: Report, mine: Sequence[TableCell]) -> str:
    found = [_IN_A_CELL]
    chance = next((f.chance for f in report.findings if f.metric == "clone_accuracy" and f.chance is not None), None)
    if chance is not None:
        found.append(f"A constant answer is right on {100 * chance:.1f} %.")
    controls = [f for f in report.controls if f.metric == "clone_accuracy" and f.value is not None]
    if controls:
        found.append(f"Clones trained on random labels: {', '.join(_control(f) for f in controls)}.")
    reasons = {cell.why: cell.column for cell in mine if cell.clone_accuracy is None and cell.why}
    senseless = {why: column for why, column in reasons.items() if why not in report.missing.values()}
    found += [f"– ({column}): {why}." for why, column in senseless.items()]
    return " ".join(found)


def _control(f: Finding) -> str:
    return f"{100 * (f.value or 0.0):.1f} % ({f.budget:,} rows, {f.seeds} seed{'s' if f.seeds > 1 else ''})"


def _percent(cell: TableCell) -> str:
    return "" if cell.clone_accuracy is None else f"{100 * cell.clone_accuracy.value:.1f} %"


def _cell(cell: TableCell, *, brief: bool) -> Cell:
    share = cell.clone_accuracy
    if share is None:
        return NOTHING
    lines = [] if share.low is None or share.high is None else [f"{100 * share.low:.1f} to {100 * share.high:.1f}"]
    if not brief:
        lines += [] if cell.fidelity is None else [f"fidelity {100 * cell.fidelity.value:.1f} %"]
        lines.append(f"Q@0.9 {'not reached' if cell.queries_to_090 is None else f'{cell.queries_to_090:,}'}")
        cover = f" + {cell.cover:,} cover" if cell.cover else ""
        lines.append(f"{cell.queries:,}{cover}, ${cell.cost_usd:,.2f}")
        lines.append(f"{cell.seeds} seed{'s' if cell.seeds > 1 else ''}")
    lines += [] if cell.alarm is None else [_rang(cell.alarm)]
    return Cell(_percent(cell), "\n".join(lines))


def _rang(alarm: AlarmCard) -> str:
    if not alarm.alarmed or alarm.queries is None or alarm.summed is None:
        return "no alarm"
    summed = "" if round(alarm.summed) == round(alarm.queries) else f" ({alarm.summed:,.0f} in all)"
    often = "" if alarm.alarmed == alarm.trials else f", {alarm.alarmed} of {alarm.trials}"
    return f"alarm at {alarm.queries:,.0f}{summed}, {' or '.join(alarm.detectors)}{often}"


def pareto(report: Report) -> Table:
    """The points of the Pareto figure."""
    head = ("", "served accuracy", "mean L1 change", "best clone", "by", "beaten")
    thieves = tuple(dict.fromkeys(point.thief for point in report.pareto))
    last = thieves[-1:] if ALL_THIEVES in thieves else ()
    rows = tuple(_point(p) for p in report.pareto if p.thief in last)
    caption = (
        "The best clone over the cells that are filled for nearly every arm. Beaten: another arm gives away no more, costs no more in accuracy and in change of the "
        "answer, and is better in one of the three."
    )
    return Table("What is stolen at which price", caption, head, rows)


def _point(p: ParetoPoint) -> tuple[Cell, ...]:
    return (
        Cell(title_of(p.arm)),
        NOTHING if p.served_accuracy is None else Cell(f"{100 * p.served_accuracy:.1f} %"),
        NOTHING if p.mean_l1 is None else Cell(f"{p.mean_l1:.3f}"),
        Cell(f"{100 * p.clone_accuracy:.1f} %"),
        Cell(f"{p.by}, {p.column}"),
        Cell("yes" if p.dominated else "no"),
    )
