"""`garrison keys`: API keys of callers."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.table import Column, Table

from garrison.cli.numbers import FiniteRange
from garrison.cli.output import console, json_option, notes, plain, printable, show_json
from garrison.server.key_file import FOR_EVER, KeyEntry, Secret, add_key, read_keys, revoke_key, rotate_key

DEFAULT_FILE = "keys.json"
_Command = TypeVar("_Command", bound=Callable[..., Any])
_SPAN = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_NOTE = "Kept in {} as a hash; this is the only time that the key is shown."

_file = click.option(
    "--keys",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_FILE,
    show_default=True,
    help="The key file, as `garrison serve --keys` reads it.",
)


def _span(context: click.Context, parameter: click.Parameter, value: str | None) -> timedelta | None:  # noqa: ARG001  click's own signature
    if value is None:
        return None
    found = _SPAN.fullmatch(value.strip())
    if found is None and value.strip() != "0":
        raise click.BadParameter(f"expected a time such as 90d, 12h or 30m, found {value!r}")
    return timedelta(0) if found is None else timedelta(**{_UNITS[found[2]]: int(found[1])})


def _life(context: click.Context, parameter: click.Parameter, value: str | None) -> timedelta | None:
    return FOR_EVER if value is not None and value.strip() == "never" else _span(context, parameter, value)


def _lives(default: str) -> Callable[[_Command], _Command]:
    told = f"The key ends after this, such as 90d, or never.  [default: {default}]"
    return click.option("--lives", callback=_life, metavar="TIME", help=told)


@click.group()
def keys() -> None:
    """API keys of callers. The file holds their hashes; a running server notices changes within seconds."""


@keys.command()
@click.argument("caller")
@_file
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    default=("*",),
    show_default="everything",
    metavar="OPERATION:MODEL",
    help="What the key may do: infer, metadata or attest; MODEL, MODEL@VERSION or *. Several may be given.",
)
@_lives("never")
@click.option(
    "--rows-per-day", type=click.IntRange(0), default=0, help="Rows a day (UTC), of all models.  [default: as set]"
)
@click.option("--requests-per-second", type=FiniteRange(0), default=0.0, help="Requests a second.  [default: as set]")
@json_option
def add(
    caller: str,
    file: Path,
    scopes: tuple[str, ...],
    lives: timedelta | None,
    rows_per_day: int,
    requests_per_second: float,
    as_json: bool,
) -> None:
    """Make a key for CALLER and print it, this once."""
    key = add_key(
        file, caller, scopes=scopes, lives=lives, rows_per_day=rows_per_day, requests_per_second=requests_per_second
    )
    _show_key(caller, key, file, as_json=as_json)


@keys.command()
@click.argument("caller")
@_file
@click.option(
    "--overlap",
    callback=_span,
    default="24h",
    show_default=True,
    metavar="TIME",
    help="The older keys are good for so much longer; 0 for no longer.",
)
@_lives("as long as the key before it")
@json_option
def rotate(caller: str, file: Path, overlap: timedelta, lives: timedelta | None, as_json: bool) -> None:
    """Make a new key for CALLER, who has one, and print it, this once."""
    _show_key(caller, rotate_key(file, caller, overlap=overlap, lives=lives), file, as_json=as_json)


@keys.command(name="list")
@_file
@json_option
def list_(file: Path, as_json: bool) -> None:
    """Who has a key, and what for."""
    entries = read_keys(file).keys
    if as_json:
        show_json([_as_json(caller, entry) for caller, entry in sorted(entries.items())])
        return
    names = ("caller", "made", "ends", "may", "rows a day", "requests a second")
    table = Table(*(Column(name, overflow="fold", no_wrap=name == "caller") for name in names))  # wrapped, never cut
    for caller, entry in sorted(entries.items()):
        made = ", ".join(_time(secret.created) for secret in entry.secrets)
        ends = ", ".join(_end(secret) for secret in entry.secrets)
        may = "everything" if "*" in entry.scopes else " ".join(entry.scopes)
        quotas = [f"{n:g}" if n else "as set" for n in (entry.rows_per_day, entry.requests_per_second)]
        table.add_row(*map(plain, (caller, made, ends, may, *quotas)))
    console.print(table)


@keys.command()
@click.argument("caller")
@_file
@json_option
def revoke(caller: str, file: Path, as_json: bool) -> None:
    """Make CALLER's keys worthless."""
    revoke_key(file, caller)
    if as_json:
        show_json({"revoked": caller, "file": str(file)})
    else:
        console.print(f"{caller}: revoked", markup=False)


def _show_key(caller: str, key: str, file: Path, *, as_json: bool) -> None:
    if as_json:
        show_json({"caller": caller, "key": key, "file": str(file)})
        return
    click.echo(key)
    notes.print(_NOTE.format(printable(str(file))), markup=False, soft_wrap=True)


def _as_json(caller: str, entry: KeyEntry) -> dict[str, Any]:
    return {
        "caller": caller,
        "created": _time(entry.secrets[-1].created),
        "keys": [
            {"created": _time(s.created), "ends": None if s.ends is None else _time(s.ends)} for s in entry.secrets
        ],
        "scopes": list(entry.scopes),
        "rows_per_day": entry.rows_per_day,
        "requests_per_second": entry.requests_per_second,
    }


def _time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds")


def _end(secret: Secret) -> str:
    if secret.ends is None:
        return "never"
    return ("ended " if secret.is_over(datetime.now(UTC)) else "") + _time(secret.ends)
