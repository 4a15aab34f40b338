"""Parts of docs/benchmarks.md: each lies between two markers, so that one part can be made anew without losing the others."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
SHOWN = ("garrison", "numpy", "onnxruntime", "granian")


class PageError(Exception):
    """The page does not have the part that is to be written."""


def markers(name: str) -> tuple[str, str]:
    return f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"


def replaced(page: str, name: str, text: str) -> str:
    """The page with another text in one part.

    Raises:
        PageError: not exactly one such part.
    """
    first, last = markers(name)
    before, found, rest = page.partition(first)
    inside, ended, after = rest.partition(last)
    if not found or not ended or first in inside + after or last in after:
        raise PageError(f"expected one part between {first} and {last} in the page")
    return f"{before}{first}\n{text.strip()}\n{last}{after}"


def write(name: str, text: str, page: Path = PAGE) -> None:
    page.write_text(replaced(page.read_text(), name, text))


def machine() -> str:
    """The processor, its cores, the system; nothing that names this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model or platform.processor() or platform.machine()}, {cores} cores, {platform.system()}"


def versions(names: tuple[str, ...] = SHOWN) -> str:
    found = [f"Python {platform.python_version()}"]
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def verdicts(found: Mapping[str, tuple[str, str, bool]]) -> str:
    """A table: by figure, what must be, what was measured and whether that is so."""
    lines = ["| figure | must | measured | met |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {must} | {seen} | {'yes' if met else '**no**'} |" for name, (must, seen, met) in found.items()
    ]
    return "\n".join(lines)


def made(command: str) -> str:
    """When, where and how a part was made."""
    today = dt.datetime.now(dt.UTC).date().isoformat()
    return f"Made on {today} by `{command}`, on {machine()}; {versions()}."
