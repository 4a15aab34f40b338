"""The Pareto figure: what each arm costs honest users, against what it gives a thief. One point an arm, a row of panels a cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from garrison.audit.report.content import ParetoPoint, Report
from garrison.audit.report.grid import arms_of, title_of
from garrison.audit.report.plots import COLOURS, INK, STYLE, svg
from garrison.errors import MissingExtraError

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ImportError as error:
    raise MissingExtraError("matplotlib", "audit") from error

_MARKS = "osD^vP*Xhp<>d8"
_OTHERS = ("#6a4c93", "#3a7d44", "#b5651d", "#5b6672", "#0f7173", "#9d4edd", "#7f5539", "#e76f51", "#457b9d", "#8ac926")
_COSTS = (("served_accuracy", "served accuracy, %", 100.0), ("mean_l1", "mean L1 change of the answer", 1.0))


def pareto_figure(report: Report, *, standalone: bool = False) -> str:
    """Best clone of each thief, and of all, over served accuracy and over the change of the answer. "" where there is nothing.

    Args:
        report: with a table.
        standalone: as a file of its own, in black on white, and not as part of a page.
    """
    thieves = list(dict.fromkeys(point.thief for point in report.pareto))
    if not thieves:
        return ""
    with mpl.rc_context(STYLE | {"svg.hashsalt": "pareto"}):
        figure = Figure(figsize=(3.4 * len(thieves) + 0.4, 7.4), layout="constrained")
        styles = _styles(arms_of(report))
        for row, (field, label, scale) in enumerate(_COSTS):
            for column, thief in enumerate(thieves):
                axes = figure.add_subplot(len(_COSTS), len(thieves), row * len(thieves) + column + 1)
                points = [p for p in report.pareto if p.thief == thief and getattr(p, field) is not None]
                _panel(axes, points, field, scale, styles)
                axes.set_xlabel(label)
                axes.set_ylabel("best clone, accuracy in %" if column == 0 else "")
                axes.set_title(thief or "the best of all", fontsize=10) if row == 0 else None
        _legend(figure)
        return svg(figure, "What each arm costs and gives away", standalone=standalone)


def _styles(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and mark of each arm; the same in every panel."""
    found, number = {}, 0
    for place, arm in enumerate(arms):
        colour = COLOURS.get(arm)
        if colour is None:
            colour, number = _OTHERS[number % len(_OTHERS)], number + 1
        found[arm] = (colour, _MARKS[place % len(_MARKS)])
    return found


def _panel(
    axes: Any, points: Sequence[ParetoPoint], field: str, scale: float, styles: dict[str, tuple[str, str]]
) -> None:
    for p in points:
        colour, mark = styles[p.arm]
        place = ([scale * getattr(p, field)], [100 * p.clone_accuracy])
        face = "none" if p.dominated else colour
        axes.plot(*place, mark, color=colour, markerfacecolor=face, markersize=8, label=title_of(p.arm), alpha=0.9)
    axes.set_ylim(0, 100)
    axes.margins(x=0.12)
    if field == "served_accuracy":
        axes.invert_xaxis()  # the dearer, the further right, as below


def _legend(figure: Any) -> None:
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    found = Line2D([], [], linestyle="none", marker="o", markerfacecolor="none", color=INK)
    named = {**handles, "hollow: another arm is better in all": found}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3, fontsize=9)
