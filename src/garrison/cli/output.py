"""How commands speak: results on standard output, everything else on standard error; `--json` gives machines one object."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from garrison.errors import GarrisonError

console = Console(highlight=False)
notes = Console(stderr=True, highlight=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def show_error(error: GarrisonError) -> None:
    """One message with the error's stable code; as a JSON object on standard output too, where --json was given."""
    if "--json" in sys.argv:
        show_json({"error": {"code": error.code, "message": str(error)}})
    notes.print(f"[bold red]error[/] ({error.code}): ", end="")
    notes.print(str(error), markup=False, soft_wrap=True)


def show_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


@contextmanager
def progress(description: str) -> Iterator[Any]:
    """A progress bar on standard error. Yields `report(message, fraction)` with a fraction in [0, 1]."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=notes) as bar:
        task = bar.add_task(description, total=1.0)

        def report(message: str, fraction: float) -> None:
            bar.update(task, description=f"{description}: {message}" if message else description, completed=fraction)

        yield report
        bar.update(task, completed=1.0)
