"""The page of a report: one file that needs nothing else, readable on light and dark, without a script."""

from __future__ import annotations

import importlib.resources

from garrison.audit.report import evasion, grid, plots, tables
from garrison.audit.report.content import Report
from garrison.audit.report.pareto import pareto_figure
from garrison.errors import MissingExtraError

try:
    import jinja2
except ImportError as error:
    raise MissingExtraError("jinja2", "audit") from error

TEMPLATE = "page.html.j2"


def render(report: Report) -> bytes:
    """The page, made from the report alone. Every text in it is escaped."""
    text = (importlib.resources.files("garrison.audit.report") / TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(text).render(
        report=report,
        main=tables.trade_off(report) if report.plan.attacks else None,
        evasions=evasion.evasions(report),
        tables=(tables.honest(report), tables.strangers(report), tables.reaching(report)),
        thieves=tables.thieves(report),
        remarks=(tables.left_out(report), tables.told(report)),
        grid=_grid(report),
        pareto=pareto_figure(report),
        clones=plots.clones_figure(report),
        similarity=plots.similarity_figure(report),
        titles={
            name: grid.title_of(name) if report.cells else tables.TITLES.get(name, name) for name in report.targets
        },
    )
    return page.encode()


def _grid(report: Report) -> tuple[tables.Table, ...]:
    """The tables of a plan with columns; none without."""
    if not report.cells:
        return ()
    each = (grid.cells(report, thief) for thief in grid.thieves_of(report))
    return (grid.arms(report), *each, grid.pareto(report))
