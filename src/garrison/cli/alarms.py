"""`garrison alarms`: callers of a running server whom the guard's `watch` has alarmed."""

from __future__ import annotations

import time
from pathlib import Path

import click

from garrison.cli.output import console, json_option, printable, show_json
from garrison.config import load_config
from garrison.guard.watching.book import Alarm
from garrison.server.launching import state_folder
from garrison.server.operator import Wish, ask_servers

_state = click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="The server's folder, as `garrison serve --state` has it.  [default: from garrison.toml, else the user's own]",
)
_model = click.option("--model", default="", help="Of this model alone.")


@click.group()
def alarms() -> None:
    """Callers whom a running server's `watch` has alarmed. Asks over a socket in the server's state folder."""


@alarms.command(name="list")
@_state
@_model
@json_option
def list_(state: Path | None, model: str, as_json: bool) -> None:
    """Who was alarmed, by what, at which row, and whether the alarm rings still."""
    found = [watched for told in ask_servers(_folder(state), Wish(model=model)) for watched in told.models]
    if as_json:
        show_json(found)
        return
    for watched in found:
        console.print(f"{watched.model}, version {watched.version}", markup=False)
        for alarm in watched.alarms:
            console.print(_line(alarm), markup=False, soft_wrap=True)
        if not watched.alarms:
            console.print("  no alarm")


@alarms.command()
@click.argument("caller")
@_state
@_model
@json_option
def clear(caller: str, state: Path | None, model: str, as_json: bool) -> None:
    """Forget all that is known of CALLER: evidence, alarms, links to others. It begins anew."""
    if not caller:
        raise click.UsageError("CALLER must not be empty")
    cleared = [name for told in ask_servers(_folder(state), Wish(caller, model)) for name in told.cleared]
    if as_json:
        show_json({"caller": caller, "cleared": cleared})
    elif cleared:
        console.print(f"{printable(caller)}: cleared ({'; '.join(cleared)})", markup=False)
    else:
        console.print(f"{printable(caller)}: nothing was known of this caller", markup=False)


def _folder(state: Path | None) -> Path:
    return state_folder(load_config()) if state is None else state


def _line(alarm: Alarm) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(alarm.since))
    summed = f" (summed with {alarm.group - 1} others, {alarm.rows} rows together)" if alarm.group > 1 else ""
    state = f"{alarm.action or 'no action (shadow)'}, {'rings' if alarm.active else 'over'}"
    found = f"{alarm.detector} at row {alarm.row}{summed}, {alarm.nats:.1f} nats of {alarm.threshold:.1f}"
    return f"  {printable(alarm.caller)}: {found}, since {since} UTC; {state}"
