"""The registry of detectors: a new detector is one file here and one line below."""

from __future__ import annotations

DETECTORS: dict[str, str] = {}
