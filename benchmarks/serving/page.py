"""The serving part of docs/benchmarks.md: tables and a plot, from the records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.arms import OURS, Arm
from benchmarks.serving.environments import PEERS, Environment
from benchmarks.serving.figures import Figure, Spread, all_figures, good, plural, processor, rate, values
from benchmarks.serving.models import MODELS
from benchmarks.serving.records import Record

from benchmarks import pages

COMMAND = "make bench ONLY=serving"
PLOT = "benchmarks-serving.svg"
COLUMNS = ("server", "wire format", "processor us a request", "requests a second", "p50 ms", "p99 ms")


def amount(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shown(spread: Spread | None) -> str:
    return "-" if spread is None else f"{amount(spread.median)} ({amount(spread.low)} to {amount(spread.high)})"


def figures_table(figures: Sequence[Figure]) -> list[str]:
    lines = ["| figure | must | measured, with quartiles | met | |", "|---|---|---|---|---|"]
    for figure in figures:
        bound = f"at {'least' if figure.least else 'most'} {figure.must:.3g} {figure.unit}".strip()
        found = f"{signed(figure.found)} {figure.unit}".strip() if figure.found else "not measured"
        met = {True: "yes", False: "**no**", None: "-"}[figure.met]
        lines.append(f"| {figure.what} | {bound} | {found} | {met} | {figure.note} |")
    return lines


def signed(spread: Spread) -> str:
    """Differences may be below 0."""
    if min(spread.low, spread.median) >= 0:
        return shown(spread)
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def servers_table(
    records: Sequence[Record], arms: Sequence[Arm], versions: Mapping[str, str], model: str, connections: int
) -> list[str]:
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for arm in arms:
        title = f"{arm.title} {versions[arm.name]}".strip() if arm.name in versions else arm.title
        place = ("peers", model, connections, arm.name)
        if not good(records, *place):
            reason = why_not(records, model, arm.name)
            lines.append(f"| {title} | {arm.wire} | not measured: {reason} | | | |")
            continue
        cells = [Spread.of(values(records, *place, get)) for get in (processor, rate, p50, p99)]
        low = amount(cells[2].median) if cells[2] else "-"
        high = amount(cells[3].median) if cells[3] else "-"
        lines.append(f"| {title} | {arm.wire} | {shown(cells[0])} | {shown(cells[1])} | {low} | {high} |")
    return lines


def p50(record: Record) -> float:
    return record.p50_ms


def p99(record: Record) -> float:
    return record.p99_ms


def why_not(records: Sequence[Record], model: str, arm: str) -> str:
    reasons = [r.failure for r in records if r.stage == "peers" and r.model == model and r.arm == arm and r.failure]
    return reasons[-1] if reasons else "it was not part of this run"


def text(
    records: Sequence[Record], arms: Sequence[Arm], environments: Mapping[str, Environment], generator: str, plot: str
) -> str:
    """The whole part, in Markdown."""
    versions = {
        name: ", ".join(f"{n} {v}" for n, v in found.versions.items() if n in PEERS[name].shown)
        for name, found in environments.items()
    }
    lines = [pages.made(COMMAND), f"Load: {generator}; open loop by `benchmarks/serving/generator.py`.", ""]
    lines += figures_table(all_figures(records))
    if plot:
        lines += ["", f"![Processor time a request, by server and model]({plot})"]
    for model in MODELS.values():
        if not any(r.stage == "peers" and r.model == model.name for r in records):
            continue
        for connections in (32, 1):
            lines += ["", f"**{model.title}, {plural(connections)}**", ""]
            lines += servers_table(records, arms, versions, model.name, connections)
    return "\n".join(lines)


def draw(records: Sequence[Record], arms: Sequence[Arm], file: Path) -> bool:
    """Processor time a request at 32 connections, one panel a model, on a log scale. Whether there was something to draw."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "garrison"
    from matplotlib import pyplot as plt

    models = [m for m in MODELS.values() if any(r.stage == "peers" and r.model == m.name for r in records)]
    if not models:
        return False
    figure, axes = plt.subplots(1, len(models), figsize=(4 * len(models), 3.6), sharey=True, squeeze=False)
    for panel, model in zip(axes[0], models, strict=True):
        _panel(panel, records, arms, model.name)
        panel.set_title(model.title)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
    return True


_LEAST_US = 10.0


def _panel(panel: Any, records: Sequence[Record], arms: Sequence[Arm], model: str) -> None:
    for k, arm in enumerate(arms):
        found = Spread.of(values(records, "peers", model, 32, arm.name, processor))
        if found is None:
            continue
        ends = [[found.median - found.low], [found.high - found.median]]
        bar = panel.barh(k, found.median, xerr=ends, color="#2a6f97" if arm in OURS else "#adb5bd")
        panel.bar_label(bar, [f"{found.median:,.0f}"], padding=4, fontsize=8)
    panel.set_xscale("log")
    panel.set_xlim(_LEAST_US, 8 * panel.get_xlim()[1])  # one beginning for all panels, and room for the numbers
    panel.xaxis.set_minor_formatter("")
    panel.set_yticks(range(len(arms)), [arm.title for arm in arms])
    panel.invert_yaxis()
    panel.set_xlabel("processor us a request, 32 connections")
