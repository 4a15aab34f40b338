"""A page on drift: histograms of the most shifted columns beside the reference, and who moves them. One file, no script, no outside address."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence

from garrison.audit.report.plots import STYLE, svg
from garrison.errors import MissingExtraError
from garrison.guard.drifting.report import ColumnShift, DriftAlarm

try:
    import jinja2
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtraError("jinja2 or matplotlib", "audit") from error

TEMPLATE = "drift.html.j2"
SHOWN = 12
_ACROSS = 3
_REFERENCE, _NOW = "#8a8a8a", "#d1495b"


def page(
    title: str, facts: Sequence[tuple[str, str]], columns: Sequence[ColumnShift], alarms: Sequence[DriftAlarm] = ()
) -> bytes:
    """The page. Every text in it is escaped.

    Args:
        facts: what is said of the whole, as (word, text).
        columns: most shifted first: `garrison.guard.drifting.report.ColumnShift`.
        alarms: `garrison.guard.drifting.report.DriftAlarm`.
    """
    text = (importlib.resources.files("garrison.audit.report") / TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shown: Mapping[str, object] = {
        "title": title,
        "facts": facts,
        "columns": columns,
        "alarms": alarms,
        "figure": histograms([column for column in columns if column.now][:SHOWN]),
    }
    return environment.from_string(text).render(shown).encode()


def histograms(columns: Sequence[ColumnShift]) -> str:
    """Reference and present shares of some columns; "" for none."""
    if not columns:
        return ""
    down = -(-len(columns) // _ACROSS)
    with mpl.rc_context(STYLE | {"svg.hashsalt": "drift"}):
        figure = Figure(figsize=(10.2, 2.5 * down), layout="constrained")
        for i, column in enumerate(columns):
            axes = figure.add_subplot(down, _ACROSS, i + 1)
            bins = range(len(column.now))
            axes.bar(bins, [100 * v for v in column.reference], 1.0, color=_REFERENCE, alpha=0.55, label="reference")
            axes.step(bins, [100 * v for v in column.now], where="mid", color=_NOW, linewidth=1.6, label="now")
            axes.set_title(f"{column.name}: PSI {column.psi:.3g}".replace("$", r"\$"), fontsize=9)
            axes.set_ylabel("rows, %" if i % _ACROSS == 0 else "")
            ends = _ticks(column.edges)
            axes.set_xticks([place for place, _ in ends], [text for _, text in ends], fontsize=8)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
        return svg(figure, "Histograms of the reference and of now")


def _ticks(edges: Sequence[float]) -> list[tuple[float, str]]:
    """A few edges, where their bins meet."""
    if not edges:
        return []
    places = sorted({0, len(edges) // 2, len(edges) - 1})
    return [(place + 0.5, f"{edges[place]:.3g}") for place in places]
