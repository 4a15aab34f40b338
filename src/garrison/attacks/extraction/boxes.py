"""Where an attacker's questions may lie, and boxes in it. Points are float64 vectors with one entry a feature; NaN is "missing".

Invariant: a box holds what is above its lower and not above its upper end on each number, as a tree's `x <= threshold` has it, and a
set of values on each category. What reaches to the end of the space holds what lies beyond it too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from garrison.attacks.draws import within
from garrison.attacks.oracle import OracleFacts
from garrison.types import Array, BoolArray, FloatArray

_STEPS = (1.0, 0.5, 0.25)
"""A threshold is usually the mean of two values with few decimals."""
_OF_RANGE = 1e-5
"""No threshold is left coarser than this share of its feature's range."""
_MUCH_ROUNDER = 8.0
"""An end is taken for the threshold from so many times the grain of what lies between on."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A box.

    Attributes:
        low, high: (features,), float64.
        allowed: by feature that is a category, which of its values lie in the box.
    """

    low: FloatArray
    high: FloatArray
    allowed: Mapping[int, BoolArray]

    def cut(self, i: int, at: float, *, below: bool) -> Region:
        """The part of it below (or above) a threshold on a number."""
        low, high = self.low.copy(), self.high.copy()
        (high if below else low)[i] = at
        return Region(low, high, self.allowed)

    def only(self, i: int, values: BoolArray) -> Region:
        """The part of it with these values of a category."""
        return Region(self.low, self.high, {**self.allowed, i: self.allowed[i] & values})

    def larger_than(self, part: Region) -> bool:
        """Whether something was cut off to get that part."""
        moved = (self.low != part.low).any() or (self.high != part.high).any()
        return bool(moved) or any((values != part.allowed[i]).any() for i, values in self.allowed.items())

    def joined(self, other: Region) -> Region | None:
        """The two as one box, where they differ in one feature alone and touch there; else None."""
        numbers = np.flatnonzero((self.low != other.low) | (self.high != other.high))
        categories = [i for i, values in self.allowed.items() if (values != other.allowed[i]).any()]
        if len(numbers) + len(categories) != 1:
            return None
        if categories:
            i = categories[0]
            return Region(self.low, self.high, {**self.allowed, i: self.allowed[i] | other.allowed[i]})
        k = int(numbers[0])
        if max(self.low[k], other.low[k]) > min(self.high[k], other.high[k]):
            return None
        return Region(np.minimum(self.low, other.low), np.maximum(self.high, other.high), self.allowed)

    def but(self, i: int) -> tuple[bytes, ...]:
        """What is the same of two boxes that differ in feature i at most."""
        others = np.arange(len(self.low)) != i
        values = (allowed.tobytes() for k, allowed in self.allowed.items() if k != i)
        return (self.low[others].tobytes(), self.high[others].tobytes(), *values)

    def overlaps(self, other: Region) -> bool:
        """Whether they share more than an edge."""
        touching = (np.minimum(self.high, other.high) <= np.maximum(self.low, other.low)) & (self.high > self.low)
        touching[list(self.allowed)] = False
        return not touching.any() and all((values & other.allowed[i]).any() for i, values in self.allowed.items())


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """A region that gave one identity wherever it was asked, `point` of it among others."""

    region: Region
    identity: bytes
    answer: FloatArray
    point: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Where questions may lie.

    Attributes:
        low, high: shape (features,), float64.
        step: shape (features,): two points this close on a feature are not told apart further.
        values: by feature that is a category, the values that it takes, rising.
    """

    facts: OracleFacts
    low: FloatArray
    high: FloatArray
    step: FloatArray
    values: Mapping[int, FloatArray] = field(default_factory=dict)

    @classmethod
    def of(
        cls, facts: OracleFacts, epsilon: float, categorical: Mapping[int, tuple[float, ...]] | None = None
    ) -> Space:
        low, high = (np.broadcast_to(v, facts.shape).reshape(-1).astype(np.float64) for v in (facts.low, facts.high))
        whole = facts.dtype.kind in "iub"
        values = {i: np.unique(np.asarray(taken, dtype=np.float64)) for i, taken in (categorical or {}).items()}
        wide = np.where(high > low, high - low, 1.0)
        step = np.ones(low.shape) if whole else np.minimum(epsilon, _OF_RANGE * wide)
        return cls(facts, low, high, step, values)

    @property
    def whole(self) -> Region:
        """All of it."""
        return Region(self.low.copy(), self.high.copy(), {i: np.ones(len(v), bool) for i, v in self.values.items()})

    def flat(self, rows: Array) -> FloatArray:
        """Rows as points; what is missing is 0, and a category without a known value takes the nearest one."""
        found: FloatArray = np.nan_to_num(rows.reshape(len(rows), math.prod(self.facts.shape)).astype(np.float64))
        for i, values in self.values.items():
            found[:, i] = values[self.number_of(i, found[:, i])]
        return found

    def number_of(self, i: int, values: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Which of a category's values the given ones are."""
        found: np.ndarray[tuple[int], np.dtype[np.int64]] = np.abs(values[:, np.newaxis] - self.values[i]).argmin(
            axis=1
        )
        return found

    def rows(self, points: FloatArray) -> Array:
        """As the service takes them. Whole numbers are rounded down, as a tree's comparison would have it."""
        exact = np.floor(points) if self.facts.dtype.kind in "iub" else points
        return within(exact.reshape(len(points), *self.facts.shape), self.facts)

    def narrowed(self, points: FloatArray) -> FloatArray:
        """Points (n, features) where they are asked: as the service's dtype has them."""
        found: FloatArray = self.rows(points).reshape(points.shape).astype(np.float64)
        return found

    def draw(self, rng: np.random.Generator, region: Region) -> FloatArray:
        """A point drawn evenly from a box, whole numbers where the features are; shape (features,)."""
        u = rng.random(len(self.low))
        if self.facts.dtype.kind in "iub":
            first = np.where(region.low > self.low, np.floor(region.low) + 1, np.ceil(region.low))
            last = np.floor(region.high)
            found: FloatArray = np.minimum(first + np.floor(u * (last - first + 1)), last)
        else:
            # From (low, high]: a threshold belongs to what lies below it.
            found = region.high - u * (region.high - region.low)
        for i, allowed in region.allowed.items():
            some = self.values[i][allowed]
            found[i] = some[int(u[i] * len(some))]
        return found

    def ends(self, region: Region, i: int) -> tuple[float, float]:
        """The first and last point of a box on a number, as far from its thresholds as these are known."""
        low, high = float(region.low[i]), float(region.high[i])
        if self.facts.dtype.kind in "iub":
            return (math.floor(low) + 1.0 if low > self.low[i] else math.ceil(low)), math.floor(high)
        first = low if low <= self.low[i] else low + float(self.step[i])
        last = high if high >= self.high[i] else high - float(self.step[i])
        return (first, last) if first <= last else (0.5 * (low + high), 0.5 * (low + high))

    def between(
        self, low: float, high: float, feature: int, grains: Mapping[float, float]
    ) -> tuple[float, float] | None:
        """The next point to ask between two of different identities, and its grain; None where they are as close as they are told apart.

        The roundest number near the middle, since it may be the threshold. An end that was asked, is much rounder than what lies
        between and is still an end is likely to be it: then its neighbour, which ends the search.

        Args:
            grains: by end that was asked as such a round number, the decimal step that it is a multiple of.
        """
        if self.facts.dtype.kind in "iub":
            return (float(np.floor(0.5 * (low + high))), 0.0) if high - low > 1 else None
        if high - low <= self.step[feature]:
            return None
        quarter, narrow = 0.25 * (high - low), self.facts.dtype.type
        found, grain = roundest(low + quarter, high - quarter)
        for end, other in ((low, high), (high, low)):
            if grains.get(end, 0.0) >= _MUCH_ROUNDER * grain:
                found, grain = float(np.nextafter(narrow(end), narrow(other))), 0.0
                break
        point = float(narrow(found))
        return (point, grain) if low < point < high else None

    def threshold(self, low: float, high: float) -> float:
        """The roundest number from low on and below high, points on the two sides of a threshold."""
        return 0.5 * (low + high) if self.facts.dtype.kind in "iub" else roundest(low, high)[0]

    def share(self, region: Region) -> float:
        """A box's part of the whole space, in [0, 1]."""
        wide = self.high > self.low
        wide[list(self.values)] = False
        parts = (region.high[wide] - region.low[wide]) / (self.high[wide] - self.low[wide])
        return float(parts.prod()) * math.prod(float(allowed.mean()) for allowed in region.allowed.values())


def roundest(low: float, high: float) -> tuple[float, float]:
    """The number from low on and below high that is a multiple of the coarsest decimal step, and that step."""
    largest = max(abs(low), abs(high))
    for exponent in range(math.ceil(math.log10(largest)), math.floor(math.log10(high - low)) - 1, -1):
        for step in (s * 10.0**exponent for s in _STEPS):
            found = step * math.ceil(low / step)
            if low <= found < high:
                return found, step
    return 0.5 * (low + high), 0.0
