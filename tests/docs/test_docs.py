"""Documents that fail the build: what they name must be there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import click
import msgspec
import pytest
from tests.docs.commands_page import PAGE as COMMANDS_PAGE
from tests.docs.commands_page import page as commands_page

from garrison.cli import COMMANDS, cli
from garrison.config import Config

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


def test_the_page_of_commands_is_as_the_commands_are() -> None:
    assert COMMANDS_PAGE.read_text() == commands_page(), "make it anew: python -m tests.docs.commands_page"


def settings(kind: type, path: str = "") -> dict[str, str]:
    """Every setting by its last name, and where it stands."""
    found = {}
    for field in msgspec.structs.fields(kind):
        found[field.name] = f"{path}{field.name}"
        for part in (field.type, *get_args(field.type)):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                found |= settings(part, f"{path}{field.name}.")
    return found


def test_every_setting_stands_in_a_document() -> None:
    told = "\n".join(page.read_text() for page in PAGES)
    missing = [where for name, where in settings(Config).items() if not re.search(rf"\b{name}\b", told)]
    assert not missing


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    }
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in linked and page != ROOT / "README.md"] == []


def anchors(page: Path) -> set[str]:
    """As the common renderers make them of headings."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    plain = (
        re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    )
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_a_heading_find_it(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors((page.parent / target) if target else page), f"{target}#{anchor}"
