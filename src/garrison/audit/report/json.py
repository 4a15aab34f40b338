"""The JSON form of a report, the source of truth. `schema.json` beside this file is its JSON Schema (draft 2020-12)."""

from __future__ import annotations

import importlib.resources
from typing import Any

import msgspec

from garrison.audit.report.content import FORMAT, Report
from garrison.errors import AuditError

MOST_BYTES = 64 * 1024 * 1024


def render(report: Report) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def parse(data: bytes) -> Report:
    """Read a report.

    Does not check: who made it.

    Raises:
        AuditError: not a report, or one of another format.
    """
    if len(data) > MOST_BYTES:
        raise AuditError(f"a report may be {MOST_BYTES} bytes long")
    try:
        report = msgspec.json.decode(data, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AuditError(f"this is no report of an audit: {error}") from error
    if report.format != FORMAT:
        raise AuditError(f"expected a report of format {FORMAT!r}, found {report.format!r}")
    return report


def schema() -> dict[str, Any]:
    """The JSON Schema that every report keeps."""
    text = (importlib.resources.files("garrison.audit.report") / "schema.json").read_bytes()
    found: dict[str, Any] = msgspec.json.decode(text)
    return found
