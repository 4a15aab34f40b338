"""A model, and a bundle of it, that commands are tried on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tests.bundle.conftest import FEATURES, make_network
from tests.cli.strict import run, seal_arguments


@pytest.fixture
def nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable and no garrison.toml of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith("GARRISON_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(make_network().SerializeToString())
    x = np.random.default_rng(0).normal(size=(2000, FEATURES)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, y=np.zeros(2000, np.int64))
    return tmp_path / "model.onnx"


@pytest.fixture
def bundle(model: Path) -> Path:
    run("keygen", "-o", "owner")
    run(*seal_arguments())
    return Path("bundle")
