"""A small real model of pictures, as attacks ask it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tests.attacks.services import CLASSES, softmax

from garrison.attacks.evasion.base import Evasion, EvasionTrial, Pictures
from garrison.attacks.oracle import Answers, OracleFacts
from garrison.errors import RefusedError
from garrison.types import Array, FloatArray

SHAPE = (1, 8, 8)


@dataclass(slots=True)
class Shown:
    """softmax(x W) over pictures; asked one account or several.

    Attributes:
        high: of the range; the pictures' values are divided by it.
        refuses_above: a request with a picture whose first value is above this share of the range is refused.
        uncertain: whether every row is answered with "uncertain".
    """

    soft: bool = True
    dtype: Any = np.float32
    high: float = 1.0
    shape: tuple[int, ...] = SHAPE
    refuses_above: float = 2.0
    uncertain: bool = False
    rows: int = 0
    asked: dict[int, list[Array]] = field(default_factory=dict)

    @property
    def facts(self) -> OracleFacts:
        low, high = np.zeros(self.shape), np.full(self.shape, self.high)
        return OracleFacts(self.shape, np.dtype(self.dtype), low, high, CLASSES, self.soft, accounts=1_000)

    def truth(self, x: Array) -> FloatArray:
        weights = np.random.default_rng(7).normal(size=(int(np.prod(self.shape)), CLASSES))
        return softmax(2.0 * (x.reshape(len(x), -1) / self.high - 0.5) @ weights)

    def query(self, x: Array) -> Answers:
        return self.query_as(x, 0)

    def query_as(self, x: Array, account: int) -> Answers:
        assert x.dtype == self.dtype
        assert (x >= 0).all()
        assert (x <= self.high).all()
        self.asked.setdefault(account, []).append(x.copy())
        self.rows += len(x)
        if (x.reshape(len(x), -1)[:, 0] > self.refuses_above * self.high).any():
            raise RefusedError("no")
        p, nobody = self.truth(x), np.zeros(len(x), dtype=np.bool_)
        doubt = np.full(len(x), self.uncertain)
        return Answers(p.argmax(axis=1).astype(np.int64), p if self.soft else None, nobody, doubt)

    def labels(self, x: Array) -> Array:
        found: Array = self.truth(x).argmax(axis=1)
        return found

    def pictures(self, count: int = 4, seed: int = 1, **more: Any) -> Pictures:
        x = np.random.default_rng(seed).random((count, *self.shape)) * self.high
        x = x.astype(self.dtype)
        return Pictures(x, self.labels(x).astype(np.int64), **more)


def carried_out(attack: Evasion, service: Shown, budget: int = 100, seed: int = 0, **more: Any) -> EvasionTrial:
    """The attack on a few pictures, judged by the model itself."""
    pictures = more.pop("pictures", None) or service.pictures()
    return attack.carry_out(service, pictures, {"served": service.labels}, budget=budget, seed=seed, **more)
