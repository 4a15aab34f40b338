from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.serving import Bundles

pytest.importorskip("starlette")


@pytest.fixture
def settings(bundles: Bundles, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The arguments of `Guarded` for one of the test's bundles."""

    def make(name: str = "mlp-1") -> dict[str, Any]:
        return {"bundle": bundles.sealed[name].path, "trust": bundles.folder / "owner.pub", "state": tmp_path / "state"}

    return make
