"""The registry of report formats: a new format is one file here and one line below. Each writes from the same `Report`."""

from __future__ import annotations

FORMATS: dict[str, str] = {
    "json": "garrison.audit.report.json:render",
    "html": "garrison.audit.report.html:render",
}
"""Suffix of the file -> "module:function", the function taking a `Report` and giving bytes."""
