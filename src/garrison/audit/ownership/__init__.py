"""Was a suspect trained on the answers of a watermarked service? See `garrison.audit.ownership.statistics` for what the figure means."""

from __future__ import annotations
