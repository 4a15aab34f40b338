"""Keeps the table of `garrison audit --plan guards` in docs/: the figures as JSON, the tables as a page, the Pareto plot as a picture.

    python -m benchmarks.guards_table REPORT/report.json                # writes docs/guards-table.md, .json, docs/guards-pareto.svg
                                                                        # and the figures in docs/choosing.md

Everything on the page is made from the report; nothing is typed by hand.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from garrison.audit.report import grid
from garrison.audit.report import json as report_json
from garrison.audit.report.content import Report, TableCell
from garrison.audit.report.pareto import pareto_figure
from garrison.audit.report.tables import Cell, Table
from garrison.audit.steps import seeds_of

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FIGURES, PLOT, CHOOSING = "guards-table.md", "guards-table.json", "guards-pareto.svg", "choosing.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def page(report: Report) -> str:
    """The page, made from the report alone."""
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
        "",
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
    lines += ["## What does not hold or was not measured", "", *(f"- {sentence}" for sentence in report.limits), ""]
    return "\n".join(lines)


def _filled(report: Report) -> list[str]:
    """Of the cells that say something: what a plan calls senseless is told below the tables."""
    senseless = {(thief, column.name) for column in report.plan.columns for thief in column.senseless}
    places = len({(cell.thief, cell.column) for cell in report.cells} - senseless)
    lines = ["| arm | cells filled | seeds | not filled |", "|---|---|---|---|"]
    for arm in grid.arms_of(report):
        mine = [c for c in report.cells if c.arm == arm and (c.thief, c.column) not in senseless]
        known = [cell for cell in mine if cell.clone_accuracy is not None]
        seeds = ", ".join(str(n) for n in sorted({cell.seeds for cell in known}))
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


def figures(report: Report) -> bytes:
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
    report = report_json.parse(Path(sys.argv[1]).read_bytes())
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else DOCS
    (folder / PAGE).write_text(page(report), encoding="utf-8")
    (folder / FIGURES).write_bytes(figures(report))
    chosen = folder / CHOOSING
    if chosen.exists():
        chosen.write_text(with_figures(chosen.read_text(encoding="utf-8"), report), encoding="utf-8")
    (folder / PLOT).write_text(pareto_figure(report, standalone=True), encoding="utf-8")


if __name__ == "__main__":
    main()
