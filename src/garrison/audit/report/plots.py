"""The figures of a report as SVG that stands inside a page: no script, no outside address, text in the page's own colour."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from garrison.attacks.base import NAIVE, Finding
from garrison.audit.report.content import Report
from garrison.audit.report.tables import TITLES
from garrison.audit.similarity import SimilarityPoint
from garrison.errors import MissingExtraError

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("matplotlib", "audit") from error

INK = "#010203"
"""Drawn with this colour and then replaced by the page's own, so that a figure reads on light and on dark."""
COLOURS = {"undefended": "#d1495b", "outlier-exposure": "#c98a04", "defended": "#2f8fbf", "none": "#8a8a8a"}
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_AGAINST = {"undefended": "against the undefended model", "unguarded": "against the sealed model without its guard"}
_KINDS = {"in-distribution": ("#2f8fbf", "in distribution"), "out-of-distribution": ("#d1495b", "out of distribution")}


def similarity_figure(report: Report) -> str:
    """Figure 5 of the seed paper: similarity over tau, with and without Adaptive Misinformation. "" where there is nothing."""
    panels = [a for a in _AGAINST if any(p.against == a for p in report.similarity)]
    if not panels:
        return ""
    with mpl.rc_context(STYLE | {"svg.hashsalt": "similarity"}):
        figure = Figure(figsize=(4.9 * len(panels) + 0.4, 3.7), layout="constrained")
        for i, against in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), i + 1)
            _similarity_panel(axes, [p for p in report.similarity if p.against == against])
            axes.set_title(_AGAINST[against], fontsize=10)
            axes.set_ylabel("similarity of the served first class, %" if i == 0 else "")
        _legend_below(figure, len(panels))
        return svg(figure, "Similarity over tau")


def _legend_below(figure: Any, panels: int) -> None:
    """The first panel's legend, beneath all of them and no wider than they are."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3 if panels > 1 else 2, fontsize=9)


def _similarity_panel(axes: Any, points: Sequence[SimilarityPoint]) -> None:
    for kind, (colour, name) in _KINDS.items():
        mine = [p for p in points if p.rows == kind]
        swept = sorted((p for p in mine if p.tau is not None), key=lambda p: p.tau or 0.0)
        taus = [p.tau for p in swept]
        axes.plot(taus, [100 * p.value for p in swept], color=colour, label=f"{name}, misinformed", linewidth=1.8)
        axes.fill_between(
            taus, [100 * p.low for p in swept], [100 * p.high for p in swept], color=colour, alpha=0.2, lw=0
        )
        for p in mine:
            if p.tau is None:
                axes.axhline(100 * p.value, color=colour, linestyle=(0, (4, 3)), linewidth=1.2, label=f"{name}, not")
            if p.calibrated:
                axes.plot([p.tau], [100 * p.value], "o", color=colour, markersize=5)
    tau = next((p.tau for p in points if p.calibrated), None)
    if tau is not None:
        axes.axvline(tau, color=INK, linewidth=0.9, linestyle=":", label=f"calibrated tau, {tau:.3g}")
    axes.set_ylim(-3, 104)
    axes.set_xlabel("tau")


def clones_figure(report: Report) -> str:
    """Clone accuracy and fidelity over queries for the arms, with intervals, chance and the control. "" where there is nothing."""
    metrics = [m for m in ("clone_accuracy", "fidelity") if any(f.metric == m for f in report.findings)]
    if not metrics:
        return ""
    with mpl.rc_context(STYLE | {"svg.hashsalt": "clones"}):
        figure = Figure(figsize=(4.9 * len(metrics) + 0.4, 3.8), layout="constrained")
        for i, metric in enumerate(metrics):
            axes = figure.add_subplot(1, len(metrics), i + 1)
            _clones_panel(axes, report, metric)
            axes.set_title(metric.replace("_", " "), fontsize=10)
            axes.set_ylabel("% of test rows" if i == 0 else "")
        _legend_below(figure, len(metrics))
        return svg(figure, "Clone accuracy and fidelity over queries")


def _clones_panel(axes: Any, report: Report, metric: str) -> None:
    shown = (report.main_attack, NAIVE)
    found = [f for f in report.findings if f.metric == metric and (f.attack, f.tactic) == shown]
    budgets = sorted({f.budget for f in (*found, *(c for c in report.controls if c.metric == metric))})
    shift = 1.0
    for target in TITLES:
        for answers, style in (("soft", "o-"), ("labels", "D:")):
            mine = sorted((f for f in found if (f.target, f.answers) == (target, answers)), key=lambda f: f.budget)
            # Points of several arms at one budget stand a little beside each other, so that their intervals can be told apart.
            _errorbars(axes, mine, shift, COLOURS[target], f"{TITLES[target]}, {answers}", style)
            shift *= 1.03
    control = sorted((f for f in report.controls if f.metric == metric), key=lambda f: f.budget)
    _errorbars(axes, control, 1.0, COLOURS["none"], "control: random labels", "x-")
    chance = next((f.chance for f in found if f.chance is not None), None)
    if chance is not None:
        axes.axhline(100 * chance, color=INK, linewidth=0.9, linestyle=":", label="a constant answer")
    axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{b:,}" for b in budgets])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("queries")
    axes.set_ylim(bottom=0)


def _errorbars(axes: Any, mine: Sequence[Finding], shift: float, colour: str, label: str, style: str) -> None:
    known = [f for f in mine if f.value is not None]
    if not known:
        return
    values = [100 * (f.value or 0.0) for f in known]
    below = [v - 100 * (v / 100 if f.low is None else f.low) for v, f in zip(values, known, strict=True)]
    above = [100 * (v / 100 if f.high is None else f.high) - v for v, f in zip(values, known, strict=True)]
    spans = [[max(0.0, b) for b in below], [max(0.0, a) for a in above]]
    fill = "none" if style.startswith("D") else colour
    axes.errorbar(
        [f.budget * shift for f in known],
        values,
        yerr=spans,
        fmt=style,
        color=colour,
        label=label,
        capsize=2.5,
        markersize=5,
        linewidth=1.6,
        markerfacecolor=fill,
    )


def svg(figure: Figure, title: str, *, standalone: bool = False) -> str:
    """The figure as text: part of a page, or a file of its own, in black on white."""
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=not standalone,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    if standalone:
        return text.replace(INK, "#000000")
    # Within a page the namespaces are known; without them nothing in the file looks like an address.
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg role="img" aria-label="{title}" \1>', text, count=1)
    return text.replace(INK, "currentColor")
