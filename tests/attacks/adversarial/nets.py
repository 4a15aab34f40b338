"""A small network that knows digits, and digits, for tests of malicious examples."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from garrison.attacks.extraction.zoo import pretrained_small
from garrison.attacks.oracle import Answers, Labels, OracleFacts
from garrison.errors import RefusedError
from garrison.types import Array, FloatArray

SHAPE = (1, 8, 8)
CLASSES = 10


@functools.cache
def digits() -> tuple[FloatArray, Labels]:
    """1,797 pictures (n, 1, 8, 8) in [0, 1], mixed, and their classes."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.data))
    return (found.data[order].reshape(-1, *SHAPE) / 16).astype(np.float32), found.target[order].astype(np.int64)


@functools.cache
def blocks() -> nn.Sequential:
    """The zoo's small network, trained on the first 400 digits; takes what its own preparation makes of pictures."""
    x, y = digits()
    return nn.Sequential(*pretrained_small(x[:400], y[:400], CLASSES)).eval()


def weights() -> tuple[FloatArray, FloatArray]:
    """A ridge regression on 800 digits, at 30 times its scores: a service that is right nine times of ten."""
    x, y = digits()
    rows = x[:800].reshape(800, -1)
    centred = np.eye(CLASSES)[y[:800]] - 0.1
    found = np.linalg.solve(rows.T @ rows + 1.0 * np.eye(64), rows.T @ centred)
    return (15.0 * found).astype(np.float32), np.zeros(CLASSES, np.float32)


@dataclass(slots=True)
class DigitService:
    """softmax(W x) behind an oracle.

    Attributes:
        soft: whether it releases probabilities.
        refuses_dark: a request with a picture whose mean is below this is refused.
        dtype: of a row; uint8 services take 0 to 255.
    """

    soft: bool = True
    refuses_dark: float = 0.0
    dtype: str = "float32"
    asked: int = 0

    @property
    def facts(self) -> OracleFacts:
        top = 255.0 if self.dtype == "uint8" else 1.0
        return OracleFacts(SHAPE, np.dtype(self.dtype), np.zeros(SHAPE), np.full(SHAPE, top), CLASSES, self.soft)

    def probabilities(self, x: Array) -> FloatArray:
        matrix, bias = weights()
        scale = 255.0 if self.dtype == "uint8" else 1.0
        z = x.reshape(len(x), -1).astype(np.float32) / scale @ matrix + bias
        e = np.exp(z - z.max(axis=1, keepdims=True))
        found: FloatArray = e / e.sum(axis=1, keepdims=True)
        return found

    def query(self, x: Array) -> Answers:
        facts = self.facts
        if x.dtype != facts.dtype or (x < facts.low).any() or (x > facts.high).any():
            raise ValueError("a row outside the service's range or of another dtype")
        self.asked += len(x)
        if (x.reshape(len(x), -1).mean(axis=1) < self.refuses_dark).any():
            raise RefusedError("too dark")
        p, nobody = self.probabilities(x), np.zeros(len(x), np.bool_)
        return Answers(p.argmax(axis=1).astype(np.int64), p if self.soft else None, nobody, nobody)


def as_tensor(x: FloatArray) -> torch.Tensor:
    return torch.as_tensor(x)
