"""A short picture of each input for detectors: a random projection (Johnson and Lindenstrauss 1984)."""

from __future__ import annotations

import math
from collections.abc import Iterable
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


@lru_cache(maxsize=256)
def group_size(features: int) -> int:
    """How many neighbouring features are averaged: as few as `MOST_GROUPS` allows, or up to twice as many where that leaves no group half empty."""
    least = math.ceil(features / MOST_GROUPS)
    return next((size for size in range(least, 2 * least) if features % size == 0), least)


def groups_of(sizes: Iterable[int]) -> int:
    """How many averages all inputs of these sizes give."""
    return sum(math.ceil(n / group_size(n)) for n in sizes)


def grouped(xp: Any, x: Any, features: int) -> Any:
    """Averages over neighbouring features, shape (rows, at most MOST_GROUPS); a last group that is not full is filled up with zeros."""
    size = group_size(features)
    if size == 1:
        return x
    return xp.sum(xp.reshape(_filled(xp, x, features, size), (-1, math.ceil(features / size), size)), axis=2) / size


def averaged(x: FloatArray, features: int) -> FloatArray:
    """`grouped` in numpy, as a product: a sum over a short dimension takes it six times as long. The same but for rounding."""
    size = group_size(features)
    if size == 1:
        return x
    found: FloatArray = _filled(np, x, features, size).reshape(len(x), -1, size) @ np.full(size, 1 / size, x.dtype)
    return found


def _filled(xp: Any, x: Any, features: int, size: int) -> Any:
    """Zeros appended, up to whole groups."""
    over = -features % size
    return xp.concat([x, xp.zeros_like(x[:, :over])], axis=1) if over else x


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
        return matrix(groups_of(sizes), self.width, self.seed)
