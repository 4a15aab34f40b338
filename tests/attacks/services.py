"""Small real services for the attacks' tests: linear models and others that refuse, fail or count."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from garrison.attacks.oracle import Answers, OracleFacts
from garrison.errors import RefusedError, UnavailableError
from garrison.types import Array, FloatArray

FEATURES, CLASSES = 6, 4


def facts(shape: tuple[int, ...] = (FEATURES,), classes: int = CLASSES, *, soft: bool = True) -> OracleFacts:
    return OracleFacts(shape, np.dtype(np.float32), np.zeros(shape), np.ones(shape), classes, soft)


def softmax(z: Array) -> FloatArray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    found: FloatArray = (e / e.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


@dataclass(slots=True)
class Linear:
    """softmax(8 x W), with what was asked.

    Attributes:
        refuses_above: a request with a row whose first feature is above this is refused as a whole.
        breaks: whether every request fails.
    """

    refuses_above: float = 2.0
    breaks: bool = False
    soft: bool = True
    asked: list[Array] = field(default_factory=list)

    @property
    def facts(self) -> OracleFacts:
        return facts(soft=self.soft)

    def truth(self, x: Array) -> FloatArray:
        weights = np.random.default_rng(7).normal(size=(FEATURES, CLASSES))
        return softmax(8.0 * (x - 0.5) @ weights)

    def query(self, x: Array) -> Answers:
        self.asked.append(x)
        if self.breaks:
            raise UnavailableError("gone")
        if (x[:, 0] > self.refuses_above).any():
            raise RefusedError("no")
        p, nobody = self.truth(x), np.zeros(len(x), dtype=np.bool_)
        return Answers(p.argmax(axis=1).astype(np.int64), p if self.soft else None, nobody, nobody)


def rows(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((n, FEATURES), dtype=np.float32)
