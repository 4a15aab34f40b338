"""Bundles that sealing clients ask."""

from __future__ import annotations

import pytest
from tests.models import BOUNDS, RELEASE, SCORE, Sealed, misinform, seal_mlp
from tests.serving import budget

from garrison.crypto.owner import OwnerKey


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sealed]:
    folder, owner = tmp_path_factory.mktemp("bundles"), OwnerKey.generate()
    chain = (BOUNDS, SCORE, misinform(0.6), RELEASE)
    return {
        "mlp": seal_mlp(folder / "mlp", chain, owner=owner),
        "mlp-2": seal_mlp(folder / "mlp-2", chain, owner=owner, version=2, seed=5),
        "strict": seal_mlp(folder / "strict", (BOUNDS, RELEASE), owner=owner, name="strict", require_sealed=True),
        "metered": seal_mlp(folder / "metered", (BOUNDS, budget(20), RELEASE), owner=owner, name="metered"),
    }
