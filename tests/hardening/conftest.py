"""A small trained victim on real digits, 16 x 16, made once for all tests of this room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from garrison.hardening import export
from garrison.hardening.misinformation import train_head
from garrison.hardening.networks import Network
from garrison.hardening.training import Training
from garrison.hardening.victim import train_victim
from garrison.types import Array

QUICK = Training(epochs=12, batch=64, learning_rate=6e-3, threads=1)


@dataclass(frozen=True, eq=False)
class Digits:
    x: Array
    y: Array
    unseen_x: Array
    unseen_y: Array


@pytest.fixture(scope="session")
def digits() -> Digits:
    """scikit-learn's digits, each pixel doubled: float32 (n, 1, 16, 16) in [0, 1]; 1,000 to train on, 797 unseen."""
    x, y = load_digits(return_X_y=True)
    images = (x.reshape(-1, 1, 8, 8) / 16).repeat(2, axis=2).repeat(2, axis=3).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(y))
    images, y = images[order], y[order].astype(np.int64)
    return Digits(images[:1000], y[:1000], images[1000:], y[1000:])


@pytest.fixture(scope="session")
def victim(digits: Digits) -> Network:
    return train_victim(digits.x, digits.y, options=QUICK)


@pytest.fixture(scope="session")
def victim_bytes(victim: Network, digits: Digits) -> bytes:
    """Without a misinformation head."""
    return export.victim_graph(victim, None, digits.x[:16])


@pytest.fixture(scope="session")
def headed_bytes(victim: Network, digits: Digits) -> bytes:
    head = train_head(victim, digits.x, digits.y, options=QUICK)
    return export.victim_graph(victim, head, digits.x[:16])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Digits, victim_bytes: bytes, headed_bytes: bytes) -> Path:
    """model.onnx, headed.onnx, train.npz, unseen.npz."""
    made = tmp_path_factory.mktemp("hardening")
    (made / "model.onnx").write_bytes(victim_bytes)
    (made / "headed.onnx").write_bytes(headed_bytes)
    labels = np.array([f"digit {k}" for k in range(10)])
    np.savez(made / "train.npz", x=digits.x, y=digits.y, labels=labels)
    np.savez(made / "unseen.npz", x=digits.unseen_x, y=digits.unseen_y)
    return made
