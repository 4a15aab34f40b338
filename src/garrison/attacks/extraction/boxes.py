"""Where an attacker's questions may lie, and boxes in it. Points are float64 vectors with one entry a feature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from garrison.attacks.oracle import OracleFacts
from garrison.types import Array, FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Where questions may lie.

    Attributes:
        low, high: shape (features,), float64.
        step: shape (features,): two points this close on a feature are not told apart further.
    """

    facts: OracleFacts
    low: FloatArray
    high: FloatArray
    step: FloatArray

    @classmethod
    def of(cls, facts: OracleFacts, epsilon: float) -> Space:
        low, high = (np.broadcast_to(v, facts.shape).reshape(-1).astype(np.float64) for v in (facts.low, facts.high))
        whole = facts.dtype.kind in "iub"
        return cls(facts, low, high, np.full(low.shape, 1.0 if whole else epsilon))

    def flat(self, rows: Array) -> FloatArray:
        found: FloatArray = np.nan_to_num(rows.reshape(len(rows), -1).astype(np.float64))
        return found

    def rows(self, points: FloatArray) -> Array:
        """As the service takes them. Whole numbers are rounded down, as a tree's comparison would have it."""
        exact = np.floor(points) if self.facts.dtype.kind in "iub" else points
        # Rounding to a narrower dtype must not leave the range.
        found: Array = np.clip(exact.astype(self.facts.dtype), self.low, self.high).astype(self.facts.dtype)
        return found.reshape(len(points), *self.facts.shape)

    def draw(self, rng: np.random.Generator, low: FloatArray, high: FloatArray, count: int) -> FloatArray:
        """Points drawn evenly from a box, whole numbers where the features are; shape (count, features)."""
        u = rng.random((count, len(low)))
        if self.facts.dtype.kind in "iub":
            first, last = np.ceil(low), np.floor(high)
            whole: FloatArray = np.minimum(first + np.floor(u * (last - first + 1)), last)
            return whole
        real: FloatArray = low + u * (high - low)
        return real

    def middle(self, low: float, high: float, feature: int) -> float | None:
        """A point between two, or None where they are as close as they are told apart."""
        if high - low <= self.step[feature]:
            return None
        middle = 0.5 * (low + high)
        if self.facts.dtype.kind in "iub":
            return float(np.floor(middle))
        narrow = float(np.asarray(middle, dtype=self.facts.dtype))
        return narrow if low < narrow < high else None


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """A region that gave one identity wherever it was asked."""

    low: FloatArray
    high: FloatArray
    identity: bytes
    answer: FloatArray
