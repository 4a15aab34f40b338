"""`garrison audit`: attack a service, and say in figures what it gives away."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.table import Table as Grid
from rich.text import Text

from garrison.audit.arms import Arms
from garrison.audit.folder import audit_into, check_folder
from garrison.audit.opening import Opening, open_arms
from garrison.audit.pace import Pace, clones_of, spoken, workload
from garrison.audit.plan import Plan, filling, load_plan, shipped_plans, within
from garrison.audit.report import evasion, grid, tables
from garrison.audit.report.content import Report
from garrison.audit.targets import ReleaseChoice
from garrison.cli.access import Access, access_options, caller_option
from garrison.cli.numbers import FiniteRange
from garrison.cli.output import console, json_option, notes, plain, printable, progress, show_json
from garrison.cli.trust import trust_option, trusted_keys_of_user
from garrison.errors import ConfigError

_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_bundle = click.Path(exists=True, file_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What was given on the command line."""

    plan: str
    reference: Path | None
    baseline: Path | None
    secret: Path | None
    trust: tuple[Path, ...]
    surrogate: Path | None
    in_distribution: Path | None
    test: Path | None
    queries: int | None
    usd: float | None
    minutes: float | None
    accounts: Path | None
    fill: tuple[str, ...]
    release: ReleaseChoice | None
    access: Access
    caller: str
    no_verify: bool
    model: str | None
    threads: int
    out: Path


@click.command()
@click.argument("target", metavar="[TARGET]", required=False)
@click.option("--plan", required=True, help=f"A shipped plan ({', '.join(shipped_plans())}) or a TOML file.")
@click.option(
    "--reference", type=_bundle, help="The bundle that is served; its model without its guard is the comparison."
)
@click.option(
    "--baseline", "--plain", "baseline", type=_bundle, help="A bundle of the plain model, trained without any defense."
)
@click.option("--secret", type=_file, help="Misinformation key of the bundle.  [default: BUNDLE.secret where it is]")
@trust_option
@click.option("--surrogate", type=_file, help="The thief's rows, array x; takes the place of the plan's.")
@click.option("--in-distribution", type=_file, help="Rows of the model's own kind that the thief has, arrays x and y.")
@click.option("--test", type=_file, help="Rows to grade on, arrays x and y; takes the place of the plan's.")
@click.option(
    "--release",
    type=click.Choice(["full", "top-k", "label"]),
    help="Release this instead; only where TARGET is a bundle.",
)
@access_options
@caller_option
@click.option("--no-verify", is_flag=True, help="Do not check the signatures of the answers: other servers have none.")
@click.option("--accounts", type=_file, help="Further API keys, one a line, for attacks that ask from many accounts.")
@click.option(
    "--queries", type=click.IntRange(min=1), help="Most rows that may be asked of TARGET; the rest is left out."
)
@click.option("--usd", type=FiniteRange(min=0, min_open=True), help="Most dollars that the queries may cost.")
@click.option("--minutes", type=FiniteRange(min=0, min_open=True), help="No attack is begun after so many minutes.")
@click.option(
    "--fill", metavar="ARM", multiple=True, help="Fill every cell of this arm of the plan's table; may be given again."
)
@click.option("--model", help="The model's name; may be left out where the service has one.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Arms to attack side by side, each on one thread.",
)
@click.option(
    "-o",
    "--output",
    "out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for report.html and report.json.",
)
@json_option
def audit(target: str | None, as_json: bool, **given: Any) -> None:
    """Attack TARGET, a service's URL or the folder of a sealed bundle, and write a report. Without TARGET the bundle of --reference is
    attacked.

    Ask only services that are yours, or whose owner agreed.
    """
    options = _Options(**given)
    check_folder(options.out)  # now, and not after the work
    plan = filling(load_plan(options.plan), options.fill)
    plan = within(plan, queries=options.queries, usd=options.usd, minutes=options.minutes)
    if target is None and options.reference is None:
        raise ConfigError(
            "nothing to attack: give a TARGET, a service's URL or the folder of a bundle, or --reference BUNDLE"
        )
    with contextlib.ExitStack() as stack:
        trusted = trusted_keys_of_user(options.trust)
        arms = stack.enter_context(open_arms(target or str(options.reference), trusted, _opening(options, plan)))
        _announce(plan, arms, options.threads)
        report, written = _audited(plan, arms, options)
    if as_json:
        show_json(report)
    else:
        show(report)
    for path in written:
        notes.print(f"written: {path}", markup=False)


def _audited(plan: Plan, arms: Arms, options: _Options) -> tuple[Report, tuple[Path, ...]]:
    """The report, and where it was written."""
    with progress("audit") as say:
        return audit_into(
            options.out,
            plan,
            arms,
            test=options.test,
            surrogate=options.surrogate,
            in_distribution=options.in_distribution,
            cpu_threads=options.threads,
            report=say,
        )


def _announce(plan: Plan, arms: Arms, threads: int) -> None:
    """How long it will take, before it begins."""
    if not plan.columns:
        return
    work = workload(plan, arms.targets())
    seconds = Pace(work, threads).total
    each = "" if threads == 1 else f", {spoken(seconds / threads)} on {threads} processors"
    most = f"; no clone is begun after {plan.most_minutes:g} min" if plan.most_minutes else ""
    text = f"{clones_of(work)} clones of {len(arms.targets())} arms: about {spoken(seconds)} of processor time{each}, less what is kept from before{most}"
    notes.print(text, markup=False)
    for name, why in arms.missing.items():
        notes.print(f"left out: {name}: {why}", markup=False)


def _opening(options: _Options, plan: Plan) -> Opening:
    return Opening(
        reference=options.reference,
        baseline=options.baseline,
        secret=options.secret,
        release=options.release,
        **options.access.options(),
        caller=options.caller,
        verify=not options.no_verify,
        model=options.model,
        accounts=() if options.accounts is None else _keys(options.accounts),
        arms=plan.arms,
    )


def _keys(path: Path) -> tuple[str, ...]:
    """One API key a line; empty lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no file of API keys, one a line: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def show(report: Report) -> None:
    """The report's tables on the terminal."""
    console.print()
    console.print(report.headline, markup=False)
    if report.cells:
        console.print(_upright(grid.arms(report)))
        for thief in grid.thieves_of(report):
            console.print(_upright(grid.cells(report, thief, brief=True)))
        console.print(_upright(grid.pareto(report)))
    for table in evasion.evasions(report):
        console.print(_upright(table))
    own = (tables.trade_off(report),) if report.plan.attacks else ()
    for table in (*own, tables.honest(report), tables.strangers(report), tables.reaching(report)):
        if table.rows and len(table.head) > 1:
            console.print(_grid(table))
    if not report.cells and len({(f.attack, f.tactic) for f in report.findings if f.attack != "none"}) > 1:
        console.print(_upright(tables.thieves(report, brief=True)))
    console.print("What does not hold or was not measured:")
    for sentence in report.limits:
        console.print(f"- {sentence}", markup=False)


def _grid(table: tables.Table) -> Grid:
    """The table on its side, which fits a terminal: a column for each arm."""
    grid = Grid(title=plain(table.title), caption=plain(table.caption), title_justify="left", caption_justify="left")
    grid.add_column("")
    for row in table.rows:
        grid.add_column(plain(row[0].text), justify="right")
    for i, head in enumerate(table.head[1:], start=1):
        grid.add_row(plain(head), *(_cell(row[i]) for row in table.rows))
    return grid


def _upright(table: tables.Table) -> Grid:
    """The table as it stands, for one with many rows."""
    grid = Grid(title=plain(table.title), caption=plain(table.caption), title_justify="left", caption_justify="left")
    for i, head in enumerate(table.head):
        grid.add_column(plain(head), justify="right" if i else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*(_cell(cell) for cell in row))
    return grid


def _cell(cell: tables.Cell) -> Text:
    text = plain(cell.text)
    return text.append(f"\n{printable(cell.detail)}", style="dim") if cell.detail else text
