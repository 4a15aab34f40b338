"""A short picture of each input for detectors: a random projection (Johnson and Lindenstrauss 1984)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from garrison.guard.base import Marks, RowDefense, Settings, View
from garrison.types import FloatArray, ModelFacts, Phase

MOST_GROUPS = 4096
"""Larger inputs are averaged over so many groups of neighbouring features first."""


@lru_cache(maxsize=16)
def matrix(groups: int, width: int, seed: int) -> FloatArray:
    """Shape (groups, width): normal, scaled so that distances are kept in the mean."""
    drawn = np.random.Generator(np.random.PCG64(seed)).normal(size=(groups, width))
    return (drawn / math.sqrt(width)).astype(np.float32)


def grouped(xp: Any, x: Any, features: int) -> Any:
    """Averages over neighbouring features, shape (rows, at most MOST_GROUPS); the last group is filled up with zeros."""
    size = math.ceil(features / MOST_GROUPS)
    groups = math.ceil(features / size)
    if size == 1:
        return x
    filled = xp.concat([x, xp.zeros_like(x[:, : groups * size - features])], axis=1)
    return xp.sum(xp.reshape(filled, (-1, groups, size)), axis=2) / size


class Projection(RowDefense, frozen=True):
    """Give the signal `projection`: `width` numbers a row, whose distances are about those of the inputs.

    Keeps every row. The matrix is public (it follows from `seed`): it hides nothing, and who knows it can craft inputs that are far apart
    and project alike.

    Attributes:
        width: numbers a row, 1 to 256.
        seed: of the matrix.
    """

    name: ClassVar[str] = "projection"
    phase: ClassVar[Phase] = Phase.INSPECT
    gives: ClassVar[frozenset[str]] = frozenset({"projection"})

    width: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 256 or self.seed < 0:
            raise ValueError("projection: width must lie in 1 to 256 and seed must not be negative")

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        parts = []
        for spec in view.facts.inputs:
            features = math.prod(spec.shape)
            x = xp.astype(xp.reshape(view.batch.inputs[spec.name], (-1, features)), xp.float32)
            if np.any(spec.may_be_missing):
                x = xp.where(x == x, x, 0.0)  # NaN stands for "missing"
            parts.append(grouped(xp, x, features))
        x = parts[0] if len(parts) == 1 else xp.concat(parts, axis=1)
        found = xp.matmul(x, xp.asarray(self._matrix(view.facts)))
        return Marks(
            signals={"projection": xp.reshape(found, (-1, self.width))}
        )  # a tracer does not know a product's width

    def _matrix(self, facts: ModelFacts) -> FloatArray:
        sizes = [math.prod(spec.shape) for spec in facts.inputs]
        return matrix(sum(math.ceil(n / math.ceil(n / MOST_GROUPS)) for n in sizes), self.width, self.seed)
