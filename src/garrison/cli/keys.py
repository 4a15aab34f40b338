"""`garrison keys`: API keys of callers."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from garrison.cli.output import console, json_option, notes, plain, printable, show_json
from garrison.server.auth import add_key, read_keys, revoke_key

DEFAULT_FILE = "keys.json"

_file = click.option(
    "--keys",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_FILE,
    show_default=True,
    help="The key file, as `garrison serve --keys` reads it.",
)


@click.group()
def keys() -> None:
    """API keys of callers. The file holds their hashes; a running server notices changes within seconds."""


@keys.command()
@click.argument("caller")
@_file
@json_option
def add(caller: str, file: Path, as_json: bool) -> None:
    """Make a key for CALLER and print it, this once."""
    key = add_key(file, caller)
    if as_json:
        show_json({"caller": caller, "key": key, "file": str(file)})
        return
    click.echo(key)
    told = f"Kept in {printable(str(file))} as a hash; this is the only time that the key is shown."
    notes.print(told, markup=False, soft_wrap=True)


@keys.command(name="list")
@_file
@json_option
def list_(file: Path, as_json: bool) -> None:
    """Who has a key."""
    entries = read_keys(file).keys
    if as_json:
        show_json([{"caller": caller, "created": entry.created} for caller, entry in sorted(entries.items())])
        return
    table = Table("caller", "made")
    for caller, entry in sorted(entries.items()):
        table.add_row(plain(caller), plain(entry.created))
    console.print(table)


@keys.command()
@click.argument("caller")
@_file
@json_option
def revoke(caller: str, file: Path, as_json: bool) -> None:
    """Make CALLER's key worthless."""
    revoke_key(file, caller)
    if as_json:
        show_json({"revoked": caller, "file": str(file)})
    else:
        console.print(f"{caller}: revoked", markup=False)
