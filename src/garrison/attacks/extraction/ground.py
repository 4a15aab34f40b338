"""Where a thief with labels alone asks: a box whose features all run from -1 to 1, and what was asked there.

Invariants: a point is what the service was really asked, after rounding to its dtype and to the values that a feature takes; features
that cannot vary are left out; what the service did not answer is remembered as asked, and never trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from garrison.attacks.draws import within
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Labels, MeteredOracle, OracleFacts, SpentError
from garrison.types import Array, BoolArray, FloatArray

NO_ANSWER = -1


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """The box of questions. Points are float64 (n, live features) in [-1, 1].

    Attributes:
        low, high: flat, float64, of every feature; where the service states no range, that of the thief's own rows.
        live: numbers of the features that can vary.
        steps: by place among the live features, the values (in [-1, 1], rising) that it takes, where it does not take all.
    """

    facts: OracleFacts
    low: FloatArray
    high: FloatArray
    live: npt.NDArray[np.int64]
    steps: Mapping[int, FloatArray]

    @classmethod
    def of(cls, facts: OracleFacts, knowledge: Knowledge) -> Ground:
        own = knowledge.surrogate.reshape(len(knowledge.surrogate), math.prod(facts.shape)).astype(np.float64)
        seen_low, seen_high = np.zeros(own.shape[1]), np.ones(own.shape[1])
        for i in range(own.shape[1]):
            values = own[np.isfinite(own[:, i]), i]
            if len(values):
                seen_low[i], seen_high[i] = values.min(), values.max()
        low, high = (np.broadcast_to(v, facts.shape).reshape(-1).astype(np.float64) for v in (facts.low, facts.high))
        low, high = np.where(np.isfinite(low), low, seen_low), np.where(np.isfinite(high), high, seen_high)
        live = np.flatnonzero(high > low)
        steps = {
            place: np.sort(2 * (np.asarray(knowledge.categorical[int(i)]) - low[i]) / (high[i] - low[i]) - 1)
            for place, i in enumerate(live)
            if int(i) in knowledge.categorical
        }
        return cls(facts, low, high, live, steps)

    @property
    def features(self) -> int:
        return len(self.live)

    def points(self, rows: Array) -> FloatArray:
        """Where rows lie; what is missing lies in the middle. Rows from outside the box lie outside [-1, 1]."""
        flat = rows.reshape(len(rows), len(self.low)).astype(np.float64)[:, self.live]
        low, high = self.low[self.live], self.high[self.live]
        found: FloatArray = np.nan_to_num(2 * (flat - low) / (high - low) - 1)
        return found

    def rows(self, points: FloatArray) -> Array:
        """Points as the service takes them."""
        flat = np.tile(self.low, (len(points), 1))
        low, high = self.low[self.live], self.high[self.live]
        kept = points.copy()
        for place, values in self.steps.items():
            kept[:, place] = values[np.abs(points[:, place, np.newaxis] - values).argmin(axis=1)]
        flat[:, self.live] = np.clip(low + (kept + 1) / 2 * (high - low), low, high)
        return within(flat.reshape(len(points), *self.facts.shape), self.facts)

    def uniform(self, rng: np.random.Generator, count: int) -> FloatArray:
        """Points drawn evenly from the box, shape (count, features)."""
        found: FloatArray = rng.uniform(-1.0, 1.0, (count, self.features))
        return found


@dataclass(slots=True)
class Notebook:
    """The service, and what it answered so far."""

    oracle: MeteredOracle
    ground: Ground
    _points: list[FloatArray] = field(default_factory=list)
    _labels: list[Labels] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        return self.oracle.remaining

    def ask(self, points: FloatArray) -> tuple[FloatArray, Labels]:
        """Where the questions really lay, and the classes answered; `NO_ANSWER` where there is none.

        Raises:
            SpentError: the budget does not hold them; none is asked.
        """
        if len(points) > self.remaining:
            raise SpentError
        rows = self.ground.rows(points)
        answers = self.oracle.query(rows)
        asked = self.ground.points(rows)
        labels = np.where(answers.usable, answers.labels, NO_ANSWER)
        self._points.append(asked)
        self._labels.append(labels)
        return asked, labels

    def ask_some(self, points: FloatArray) -> tuple[FloatArray, Labels]:
        """As many of the points as the budget holds."""
        return self.ask(points[: self.remaining])

    def answered(self) -> tuple[FloatArray, Labels]:
        """All points with an answer, and their classes."""
        if not self._points:
            return np.empty((0, self.ground.features)), np.empty(0, dtype=np.int64)
        points, labels = np.concatenate(self._points), np.concatenate(self._labels)
        known: BoolArray = labels != NO_ANSWER
        return points[known], labels[known]


def between_classes(
    notebook: Notebook, a: FloatArray, b: FloatArray, own: Labels, halvings: int
) -> tuple[FloatArray, FloatArray, Labels]:
    """Bisect many ways at once: the last point of a's class and the first of another, and that one's class.

    Args:
        a, b: (n, features), ends of n ways; the classes at b differ from those at a.
        own: (n,), the classes at a.
        halvings: of each way.
    """
    a, b, other = a.copy(), b.copy(), np.full(len(a), NO_ANSWER, dtype=np.int64)
    for _ in range(halvings):
        middle, labels = notebook.ask((a + b) / 2)
        same = labels == own
        a[same] = middle[same]
        b[~same] = middle[~same]
        other[~same] = labels[~same]
    return a, b, other
