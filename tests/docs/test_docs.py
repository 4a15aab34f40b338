"""Documents that fail the build: what they name must be there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from garrison.cli import COMMANDS, cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]


def commands_in(text: str) -> list[str]:
    """Every `garrison ...` line of a fenced block, continuation lines joined, comments cut."""
    found = []
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            plain = line.removeprefix("$ ").split(" #")[0].strip()
            if plain.startswith("garrison "):
                found.append(plain)
    return found


def options_of(command: click.Command) -> set[str]:
    return {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.get_command(context, words[0])
        assert inner is not None, f"there is no command {words[0]!r}"
        command, words = inner, words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_documents_exist(page: Path) -> None:
    for line in commands_in(page.read_text()):
        words = [w for w in shlex.split(line.rstrip("&").split("|")[0].split(">")[0])[1:] if w not in {"…", "..."}]
        command, rest = resolve(words)
        unknown = {w.split("=")[0] for w in rest if w.startswith("-") and len(w) > 1} - options_of(command)
        assert not unknown, f"{page.name}: {line!r} uses {unknown}"


def test_the_check_reads_the_readme() -> None:
    assert len(commands_in((ROOT / "README.md").read_text())) >= 9
    assert commands_in("```\n$ garrison serve X --bad\n```") == ["garrison serve X --bad"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    command, _ = resolve([name])
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help or parameter.hidden, f"{name} {parameter.opts} has no help"


def test_no_document_names_this_machine() -> None:
    for page in PAGES:
        assert not re.search(r"/work/|/tmp/dev|/root/", page.read_text()), page
