"""Keeps the table of `garrison audit --plan guards` in docs/: the figures as JSON, the tables as a page, the Pareto plot as a picture.

    python -m benchmarks.guards_table REPORT/report.json                # writes docs/guards-table.md, .json, docs/guards-pareto.svg
                                                                        # and the figures in docs/choosing.md
    python -m benchmarks.guards_table REPORT/report.json --more DIGITS/report.json    # with the thief of more rows, from a plan of its own

Everything on the page is made from the reports; nothing is typed by hand.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from garrison.attacks.base import Finding
from garrison.audit.report import grid
from garrison.audit.report import json as report_json
from garrison.audit.report.content import Report, TableCell
from garrison.audit.report.pareto import pareto_figure
from garrison.audit.report.tables import Cell, Table
from garrison.audit.steps import seeds_of

DOCS = Path(__file__).parents[1] / "docs"
SEE = (
    (
        "The audit asks with few honest callers, so its share of alarmed ones has a wide interval: [Detectors](detectors/README.md) counts many more, "
        "moved and mirrored pictures among them, and says for each thief, alone and under cover, at which row it is first seen."
    ),
    (
        "What a clone of JBDA is worth at the alarm, and what after it: [near-duplicates](detectors/near-duplicates.md#what-it-stops). Many accounts: "
        "[accounts](detectors/accounts.md). Each defense alone, and who beats it: [defenses](defenses/README.md)."
    ),
)
"""Where the figures are that this table does not hold."""
PAGE, FIGURES, PLOT, CHOOSING = "guards-table.md", "guards-table.json", "guards-pareto.svg", "choosing.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def page(report: Report, more: Report | None = None, note: str = "") -> str:
    """The page, made from the reports alone.

    Args:
        report: of the whole table.
        more: of one thief with several budgets against the chain.
        note: more on how it was made.
    """
    filled = [cell for cell in report.cells if cell.clone_accuracy is not None]
    seeds = sorted({cell.seeds for cell in filled})
    lines = [
        "# The table of the guards",
        "",
        (
            f"Made by `garrison audit --plan {report.plan.name}` and `python -m benchmarks.guards_table`; the figures are in [{FIGURES}]({FIGURES}). How to read it "
            "and what follows from it: [choosing.md](choosing.md)."
        ),
        "",
        (
            f"Made {report.created[:10]} with Garrison {report.garrison}. Test rows: {report.data['test'].rows:,} of {report.data['test'].source}. The thief's rows: "
            f"{report.data['surrogate'].source}; of the model's own kind: {report.data['in-distribution'].source if 'in-distribution' in report.data else 'none'}."
        ),
        "",
        *_how(report, note),
        "## What is filled",
        "",
        (
            f"{len(filled)} cells of {len(report.targets)} arms, with {' or '.join(str(n) for n in seeds)} seed{'s' if seeds != [1] else ''} each. With fewer than three "
            "seeds an interval covers the choice of test rows, not another training run, which moves a clone by several points."
        ),
        "",
        *_filled(report),
        "",
        *_fewer_seeds(report),
        "![What each arm costs and gives away](" + PLOT + ")",
        "",
        (
            "One point an arm: the best clone of each thief over the columns that are filled for nearly every arm that it attacked. To the left and down is better. Hollow "
            "points are beaten by another arm in accuracy, change of the answer and clone together."
        ),
        "",
        *_table(grid.pareto(report)),
        *_table(grid.arms(report)),
    ]
    for thief in grid.thieves_of(report):
        lines += _table(grid.cells(report, thief))
    lines += [] if more is None else _more(more)
    lines += ["## Other figures", "", *(f"- {sentence}" for sentence in SEE), ""]
    lines += ["## What does not hold or was not measured", "", *(f"- {sentence}" for sentence in report.limits), ""]
    return "\n".join(lines)


def _how(report: Report, note: str) -> list[str]:
    """The commands, and the models that they were given."""
    return [
        "## How it was made",
        "",
        "```",
        "garrison harden VICTIM.onnx --data TRAIN.npz --calibration CALIBRATION.npz --outlier-exposure -o HARDENED",
        (
            "garrison seal HARDENED --key OWNER.key --watch-action misinform --data CALIBRATION.npz --defense adaptive-misinformation "
            "--defense modelguard-s --shadow modelguard-s -o BUNDLE"
        ),
        f"garrison audit --plan {report.plan.name} --reference BUNDLE --plain PLAIN --trust OWNER.pub -o REPORT",
        "```",
        "",
        (
            "VICTIM and PLAIN are the model of `examples/fashion_mnist`, with outlier exposure and without, as `python -m benchmarks.run` trains them. modelguard-s "
            "stands in the chain in shadow, where it changes nothing, because its table is found by calibration."
        ),
        *(["", note] if note else []),
        "",
    ]


def _more(report: Report) -> list[str]:
    """What each number of questions gives each thief of the second report, beside clones of random labels."""
    mine = [f for f in report.findings if f.metric == "clone_accuracy" and f.attack != "none" and f.value is not None]
    controls = [f for f in report.controls if f.metric == "clone_accuracy" and f.value is not None]
    budgets = sorted({f.budget for f in controls})
    lines = [
        "## The thief of more rows",
        "",
        f"Knockoff with {report.data['surrogate'].source}, by what it does who knows the guard. Accuracy of the clone on the test rows: mean, and in small the interval and the seeds.",
        "",
        "| arm | column | " + " | ".join(f"{budget:,} rows" for budget in budgets) + " |",
        "|---|---|" + "---:|" * len(budgets),
    ]
    order = sorted(grid.arms_of(report), key=lambda arm: arm != "defended")
    for arm in order:
        for column in dict.fromkeys(f.tactic for f in mine if f.target == arm and f.attack == "knockoff"):
            found = {f.budget: f for f in mine if (f.target, f.attack, f.tactic) == (arm, "knockoff", column)}
            lines.append(f"| {grid.title_of(arm)} | {column} | {_budgets(found, budgets)} |")
    lines.append(f"| random labels | control | {_budgets({f.budget: f for f in controls}, budgets)} |")
    chance = next((f.chance for f in mine if f.chance is not None), None)
    told = [] if chance is None else [f"A clone that gives every row the same class is right on {100 * chance:.1f} %."]
    return [*lines, "", " ".join([*told, "– was not measured."]), ""]


def _budgets(found: dict[int, Finding], budgets: Sequence[int]) -> str:
    return " | ".join(_share(found[budget]) if budget in found else "–" for budget in budgets)


def _share(f: Finding) -> str:
    """Mean, interval and number of seeds."""
    span = "" if f.low is None or f.high is None else f"<br><small>{100 * f.low:.1f} to {100 * f.high:.1f}</small>"
    return f"{100 * (f.value or 0.0):.1f} %{span}<br><small>{f.seeds} seed{'s' if f.seeds > 1 else ''}</small>"


def _filled(report: Report) -> list[str]:
    """Of the cells that say something: what a plan calls senseless is told below the tables."""
    senseless = {(thief, column.name) for column in report.plan.columns for thief in column.senseless}
    places = len({(cell.thief, cell.column) for cell in report.cells} - senseless)
    lines = ["| arm | cells filled | seeds | not filled |", "|---|---|---|---|"]
    for arm in grid.arms_of(report):
        mine = [c for c in report.cells if c.arm == arm and (c.thief, c.column) not in senseless]
        known = [cell for cell in mine if cell.clone_accuracy is not None]
        counts = sorted(Counter(cell.seeds for cell in known).items())
        seeds = ", ".join(str(n) if len(counts) == 1 else f"{n} in {cells} cells" for n, cells in counts)
        lines.append(
            f"| {grid.title_of(arm)} | {len(known)} of {places} | {seeds or '–'} | {_escaped(_reasons(mine))} |"
        )
    return lines


def _fewer_seeds(report: Report) -> list[str]:
    """Of which arms some cells have fewer seeds than the plan asks, as where the time of a run ends."""
    short = {
        c.arm for c in report.cells if c.clone_accuracy is not None and c.seeds < len(seeds_of(report.plan, c.arm))
    }
    named = [grid.title_of(arm) for arm in grid.arms_of(report) if arm in short]
    if not named:
        return []
    return [
        f"The plan asks {len(report.plan.seeds)} seeds, for which this run had no time in every cell of: {'; '.join(named)}.",
        "",
    ]


def _reasons(cells: Sequence[TableCell]) -> str:
    """Why cells are empty, each reason behind the number of cells that it holds for."""
    counts = Counter(cell.why for cell in cells if cell.why)
    return "; ".join(f"{count}: {why}" for why, count in counts.items())


def _table(table: Table) -> list[str]:
    head = "| " + " | ".join(_escaped(text) for text in table.head) + " |"
    rows = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in table.rows]
    rule = "|---" + "|---:" * (len(table.head) - 1) + "|"
    return [f"## {table.title}", "", head, rule, *rows, "", _escaped(table.caption), ""]


def _cell(cell: Cell) -> str:
    small = "".join(f"<br><small>{_escaped(line)}</small>" for line in cell.detail.splitlines() if line)
    return f"{_escaped(cell.text)}{small}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def with_figures(text: str, report: Report) -> str:
    """The page "how to choose" with the points of the figure between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{CHOOSING} lacks the marks {BEGIN} and {END}")
    lines = ["", *_table(grid.pareto(report))[2:], f"Plan {report.plan.name}, {report.created[:10]}.", ""]
    return before + begin + "\n".join(lines) + end + after


def figures(report: Report, more: Report | None = None) -> bytes:
    """What the page shows, for machines."""
    kept: dict[str, Any] = {
        "format": "garrison-guards-table/1",
        "created": report.created,
        "garrison": report.garrison,
        "plan": report.plan,
        "data": report.data,
        "arms": report.targets,
        "environment": report.environment,
        "missing": report.missing,
        "served": [f for f in report.findings if f.attack == "none" and f.metric in _SERVED],
        "controls": [f for f in report.controls if f.metric in {"clone_accuracy", "fidelity"}],
        "cells": report.cells,
        "pareto": report.pareto,
        "limits": report.limits,
    }
    if more is not None:
        kept["more_rows"] = [
            f
            for f in [*more.findings, *more.controls]
            if f.attack != "none" and f.metric in {"clone_accuracy", "fidelity"}
        ]
    return msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n"


_SERVED = {
    "served_accuracy",
    "benign_loss_guard",
    "benign_loss_total",
    "changed_top1_guard",
    "mean_l1_guard",
    "honest_callers_alarmed",
    "unanswered",
}


def main() -> None:
    asked = argparse.ArgumentParser(description="Keep the table of the guards in docs/.")
    asked.add_argument("report", type=Path, help="report.json of `garrison audit --plan guards`")
    asked.add_argument("folder", type=Path, nargs="?", default=DOCS, help="where to write (docs/)")
    asked.add_argument("--more", type=Path, help="report.json of a plan with several budgets of knockoff")
    asked.add_argument("--note", default="", help="a sentence on how it was made")
    given = asked.parse_args()
    report = report_json.parse(given.report.read_bytes())
    more = None if given.more is None else report_json.parse(given.more.read_bytes())
    folder: Path = given.folder
    (folder / PAGE).write_text(page(report, more, given.note), encoding="utf-8")
    (folder / FIGURES).write_bytes(figures(report, more))
    chosen = folder / CHOOSING
    if chosen.exists():
        chosen.write_text(with_figures(chosen.read_text(encoding="utf-8"), report), encoding="utf-8")
    (folder / PLOT).write_text(pareto_figure(report, standalone=True), encoding="utf-8")


if __name__ == "__main__":
    main()
