"""docs/commands.md, made of the commands themselves: `python -m tests.docs.commands_page` writes it anew."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from garrison.cli import cli

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
HEAD = """# All commands

Every command with its options, as `--help` says them. This page is made from the code: `python -m tests.docs.commands_page`.
What the commands are for stands in the [README](../README.md) and on the pages that it names.

Every command takes `--help`. Most take `--json` and then print one JSON object. Exit code 0: it went well. 1: it did not, or a check failed. 2: the command line is
wrong. 70: our fault; `garrison --debug` (or `GARRISON_DEBUG=1`) shows where.
"""


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from commands(inner, (*path, name))


def value_of(option: click.Option) -> str:
    """What follows the option; nothing for a flag."""
    kind = option.type
    if option.is_flag or option.count:
        return ""
    if option.metavar:
        return option.metavar
    if isinstance(kind, click.Choice):
        return "|".join(map(str, kind.choices))
    return " ".join([kind.name.upper().removesuffix(" RANGE")] * option.nargs)


def meaning_of(option: click.Option) -> str:
    said = [re.sub(r"\s*\[default: (.*?)\]", r" Default: \1.", option.help or "").strip()]
    if option.required:
        said.append("Required.")
    if isinstance(option.show_default, str):
        said.append(f"Default: {option.show_default}.")
    elif option.show_default and option.default not in {None, False}:
        said.append(f"Default: {option.default}.")
    return " ".join(said).replace("|", "\\|")


def usage_of(argument: click.Argument) -> str:
    if argument.metavar:
        return argument.metavar
    name = (argument.name or "").upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def section(path: tuple[str, ...], command: click.Command) -> str:
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(command.help or "").split("\n\n")]
    lines = [f"## {' '.join(path)}", "", "\n\n".join(paragraphs)]
    if not isinstance(command, click.Group):
        words = [usage_of(p) for p in command.params if isinstance(p, click.Argument)]
        lines[1:2] = ["", f"    {' '.join([*path, *words])}", ""]
    shown = [p for p in command.params if isinstance(p, click.Option) and not p.hidden and "--json" not in p.opts]
    if shown:
        lines += ["", "| option | |", "|---|---|"]
    for option in shown:
        value = value_of(option).replace("|", "\\|")
        names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
        lines.append(f"| {names}{f' `{value}`' if value else ''} | {meaning_of(option)} |")
    return "\n".join(lines)


def page() -> str:
    found = list(commands(cli, ("garrison",)))
    names = sorted({path[1] for path, _ in found if len(path) > 1})
    contents = ", ".join(f"[{name}](#garrison-{name})" for name in names)
    return "\n".join([HEAD, f"{contents}\n", "\n\n".join(section(path, command) for path, command in found), ""])


if __name__ == "__main__":
    PAGE.write_text(page())
