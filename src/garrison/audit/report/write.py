"""Writes a report in every registered format; each file appears whole or not at all."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from garrison.audit.report import FORMATS
from garrison.audit.report.content import Report
from garrison.errors import AuditError

Render = Callable[[Report], bytes]


def load_format(name: str) -> Render:
    """The function that renders a format.

    Raises:
        MissingExtraError: the format needs an optional package.
    """
    module, _, attribute = FORMATS[name].partition(":")
    render: Render = getattr(importlib.import_module(module), attribute)
    return render


def paths_of(target: Path) -> dict[str, Path]:
    """Where each format goes: into a folder as report.html and report.json, or beside each other under a prefix.

    A path with the suffix of a format is a prefix (`out/mine.html` gives `out/mine.html` and `out/mine.json`); every other path is a
    folder.
    """
    prefix = target.with_suffix("") if target.suffix[1:] in FORMATS and not target.is_dir() else target / "report"
    return {name: prefix.with_name(f"{prefix.name}.{name}") for name in FORMATS}


def kept_in(target: Path) -> Path:
    """The folder beside a report in which finished parts of the audit are kept."""
    return paths_of(target)["json"].parent / ".cache"


def check_target(target: Path) -> None:
    """That the folder of a report, or the nearest above it that is there, takes files: an audit of an hour should not find out at its end.

    Raises:
        AuditError: it does not.
    """
    folder = paths_of(target)["json"].parent
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise AuditError(f"{target}: no report can be written there: {error.strerror or error}") from error


def write_report(report: Report, target: Path) -> tuple[Path, ...]:
    """Write all formats; see `paths_of`.

    Raises:
        AuditError: a file cannot be written.
        MissingExtraError: a format needs an optional package.
    """
    rendered = {path: load_format(name)(report) for name, path in paths_of(target).items()}
    try:
        for path, data in rendered.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.{os.getpid()}")
            new.write_bytes(data)
            new.replace(path)
    except OSError as error:
        raise AuditError(f"{target}: the report cannot be written: {error.strerror or error}") from error
    return tuple(rendered)
