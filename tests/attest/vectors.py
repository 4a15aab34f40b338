"""Where the public evidence lies: beside the repository, or where GARRISON_VECTORS says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "GARRISON_VECTORS"


def folder() -> Path:
    """Skips the test where the vectors are not there."""
    root = Path(__file__).resolve().parents[2]
    place = Path(os.environ.get(VARIABLE, root.parent / "shared" / "vectors"))
    if not (place / "README.md").is_file():
        pytest.skip(f"public attestation vectors not found: expected in {place}, or where {VARIABLE} points")
    return place
