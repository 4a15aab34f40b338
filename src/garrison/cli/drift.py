"""`garrison drift`: how far what callers ask has moved from the signed reference, and who moves it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from garrison.cli.output import console, json_option, notes, printable, show_json
from garrison.cli.trust import trust_option, trusted_keys_of_user
from garrison.config import load_config
from garrison.guard.drifting.report import ColumnShift, Compared, DriftAlarm, DriftReport
from garrison.server.launching import state_folder
from garrison.server.operator import ModelDrift, Wish, ask_servers

SHOWN = 8
_OFFLINE = "garrison.api.drift"
_PAGE = "garrison.audit.report.drift"
_file = click.Path(dir_okay=False, path_type=Path)
_page = click.option("-o", "--output", "page", type=_file, help="Write an HTML page with plots (garrison[audit]).")


@click.group()
def drift() -> None:
    """How far what callers ask has moved from the signed reference, and who moves it."""


@drift.command()
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="The server's folder, as `garrison serve --state` has it.  [default: from garrison.toml, else the user's own]",
)
@click.option("--model", default="", help="Of this model alone.")
@_page
@json_option
def report(state: Path | None, model: str, page: Path | None, as_json: bool) -> None:
    """What a running server has found. Asks over a socket in the server's state folder."""
    folder = state_folder(load_config()) if state is None else state
    found = [one for told in ask_servers(folder, Wish(model=model, drift=True)) for one in told.drift]
    if page is not None:
        _write_page(page, found)
    if as_json:
        show_json(found)
    elif page is None:
        for one in found:
            _show(one)


@drift.command()
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("data", metavar="DATA.npz", type=_file)
@trust_option
@_page
@click.option("--strict", is_flag=True, help="Exit with 1 where any column has shifted.")
@json_option
def check(bundle: Path, data: Path, trust: tuple[Path, ...], page: Path | None, strict: bool, as_json: bool) -> None:
    """Compare the rows of DATA.npz with the signed reference of BUNDLE, offline."""
    found = _offline().check(bundle, data, trusted_keys_of_user(trust))
    _finish(found, str(bundle), page, strict=strict, as_json=as_json)


@drift.command()
@click.argument("reference", metavar="REFERENCE.npz", type=_file)
@click.argument("now", metavar="NOW.npz", type=_file)
@click.option("--evidently", is_flag=True, help="Let Evidently make the page (garrison[evidently]); takes -o.")
@_page
@click.option("--strict", is_flag=True, help="Exit with 1 where any column has shifted.")
@json_option
def compare(reference: Path, now: Path, evidently: bool, page: Path | None, strict: bool, as_json: bool) -> None:
    """Compare two files of rows, feature by feature, offline."""
    if evidently:
        if page is None:
            raise click.UsageError("--evidently writes a page: give -o PAGE.html")
        _offline().evidently_page(reference, now, page)
        page = None
    found = _offline().compare(reference, now)
    if found.unpaired:
        holder = reference if found.unpaired == "reference" else now
        notes.print(f"y is left out: only {printable(str(holder))} has it", markup=False, soft_wrap=True)
    _finish(found, str(reference), page, strict=strict, as_json=as_json)


def _offline() -> Any:
    """`garrison.api.drift`, which loads the runtime: only where rows are compared."""
    return importlib.import_module(_OFFLINE)


def _finish(found: Compared, against: str, page: Path | None, *, strict: bool, as_json: bool) -> None:
    if page is not None:
        facts = (
            ("rows", f"{found.rows}"),
            ("reference", f"{against}, {found.reference_rows} rows"),
            ("beyond chance", ", ".join(found.shifted) or "no column"),
        )
        _save(page, f"Drift against {against}", facts, found.columns, ())
    if as_json:
        show_json(found)
    elif page is None:
        console.print(f"{found.rows} rows against {found.reference_rows} of {printable(against)}", markup=False)
        for column in found.columns[:SHOWN]:
            beyond = "shifted" if column.name in found.shifted else "within chance"
            text = f"{_column(column)}; {beyond} (p {found.chance[column.name]:.2g})"
            console.print(text, markup=False, soft_wrap=True)
        console.print(f"shifted: {len(found.shifted)} of {len(found.columns)} columns", markup=False)
    if strict and found.shifted:
        raise click.exceptions.Exit(1)


def _show(one: ModelDrift) -> None:
    found = one.report
    console.print(f"{one.model}, version {one.version}: {found.rows} rows", markup=False)
    for kind, value in found.values.items():
        words = f"  {kind:12}{value:.4g}, highest {found.peaks[kind]:.4g}, rings from {found.thresholds[kind]:.4g}"
        console.print(words, markup=False)
    for alarm in found.alarms:
        console.print(_alarm(alarm), markup=False, soft_wrap=True)
    if not found.alarms:
        console.print("  no alarm", markup=False)
    for column in found.columns[:SHOWN]:
        console.print(_column(column), markup=False)
    for caller in found.callers:
        words = f"  {printable(caller.caller)}: {caller.traffic:.1%} of recent rows, {caller.explains:.0%} of the shift"
        console.print(words, markup=False)


def _column(column: ColumnShift) -> str:
    return f"  {printable(column.name)}: PSI {column.psi:.4f}, KS {column.ks:.4f}, mean off by {column.ewma:.1f} errors"


def _alarm(alarm: DriftAlarm) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(alarm.since))
    state = "rings" if alarm.active else "over"
    found = f"{alarm.kind} of {printable(alarm.column)} {alarm.value:.4g}, threshold {alarm.threshold:.4g}"
    return f"  alarm {alarm.number}: {found}, at row {alarm.row}, since {since} UTC; {_who(alarm)}; {state}"


def _who(alarm: DriftAlarm) -> str:
    """Who was named, and who moves it now where that are others."""
    named, now = (", ".join(map(printable, names)) or "nobody in particular" for names in (alarm.named, alarm.moving))
    if not alarm.active or set(alarm.moving) == set(alarm.named):
        return f"moved by {named}"
    return f"named so far: {named}; moved now by {now}"


def _write_page(page: Path, found: Sequence[ModelDrift]) -> None:
    if len(found) != 1:
        names = ", ".join(f"{one.model} {one.version}" for one in found)
        raise click.UsageError(f"a page shows one model: choose with --model among {names}")
    one = found[0]
    _save(
        page, f"Drift of {one.model}, version {one.version}", _facts(one.report), one.report.columns, one.report.alarms
    )


def _facts(found: DriftReport) -> tuple[tuple[str, str], ...]:
    callers = (f"{c.caller}: {c.traffic:.1%} of recent rows, {c.explains:.0%} of the shift" for c in found.callers)
    return (
        ("rows", f"{found.rows}; one counts half after {found.half_life:g}"),
        ("reference", f"{found.reference_rows} rows, frozen and signed"),
        *((kind, f"{value:.4g} of {found.thresholds[kind]:.4g}") for kind, value in found.values.items()),
        ("moved by", ", ".join(found.named) or "nobody in particular"),
        ("callers", "; ".join(callers) or "none"),
    )


def _save(
    page: Path,
    title: str,
    facts: Sequence[tuple[str, str]],
    columns: Sequence[ColumnShift],
    alarms: Sequence[DriftAlarm],
) -> None:
    page.write_bytes(importlib.import_module(_PAGE).page(title, facts, columns, alarms))
    notes.print(f"wrote {page}", markup=False, soft_wrap=True)
