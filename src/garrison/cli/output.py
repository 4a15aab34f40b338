"""How commands speak: results on standard output, everything else on standard error; `--json` gives machines one object."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click
import msgspec
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from garrison.errors import GarrisonError

BROKEN_PIPE = 141
DEFECT = 70
_CONTROL = {
    number: "\N{REPLACEMENT CHARACTER}" for number in (*range(32), *range(127, 160)) if chr(number) not in "\n\t"
}


_C1 = {number: f"\\u{number:04x}" for number in range(127, 160)}


def printable(text: str, *, lines: bool = False) -> str:
    """A text of others (a server's, a file's) with all that is not printable made visible, by escapes as Python writes them.

    Args:
        lines: keep line feeds, where the text may have several lines.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (lines and c == "\n") else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def plain(text: object) -> Text:
    """A text of others for a cell of a table: printable, and nothing in it is markup."""
    return Text(printable(str(text)))


class SafeConsole(Console):
    """Shows control characters in a text as a mark: what a server says must not move the cursor or paint over our own words."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=segment.text.translate(_CONTROL))

    def on_broken_pipe(self) -> None:
        quiet_pipe()


def quiet_pipe() -> NoReturn:
    """End as a program does whose reader has gone (`garrison ... | head`): nothing more is said, exit code 141."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    raise SystemExit(BROKEN_PIPE)


console = SafeConsole(highlight=False)
notes = SafeConsole(stderr=True, highlight=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def show_error(error: GarrisonError) -> None:
    """One message with the error's stable code; as a JSON object on standard output too, where --json was given."""
    if "--json" in sys.argv:
        show_json({"error": {"code": error.code, "message": str(error)}})
    notes.print(f"[bold red]error[/] ({error.code}): ", end="")
    notes.print(printable(str(error), lines=True), markup=False, soft_wrap=True)


def show_unexpected(error: Exception) -> int:
    """One line about an error that nobody foresaw; the exit code."""
    told = printable(f"{type(error).__name__}: {error}")
    if isinstance(error, OSError) and error.errno is not None:  # no space, no permission: the machine's, not a defect
        code, told = 1, printable(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))
        kind, help_ = "system", "run again with --debug for the traceback"
    else:
        code, kind, help_ = DEFECT, "internal", "this is a defect; run again with --debug for the traceback"
    if "--json" in sys.argv:
        show_json({"error": {"code": kind, "message": told}})
    notes.print(f"[bold red]error[/] ({kind}): ", end="")
    notes.print(f"{told}; {help_}", markup=False, soft_wrap=True)
    return code


def show_json(value: Any) -> None:
    # JSON itself escapes what is below 32; a terminal also obeys 127 to 159.
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode().translate(_C1))


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
