"""Lowd and Meek: the weights of a linear model of two classes from classes alone, one feature after the other.

Lowd and Meek, "Adversarial Learning" (KDD 2005), section 3, for features that take many values. Two points of different classes are the
witnesses. Halving the way between them gives a point p on the boundary, and the way itself a direction u. Then, feature by feature: move
p along it, ask on which side that is (the sign of its weight), and search along u for the boundary again. How far it went is the
feature's weight relative to that of u.

Differs from the paper: the searches go along the way between the witnesses and not along one feature, because a box leaves a single
feature too little room where its weight is small.

Invariant: labels alone are used. Not covered: more than two classes; a model that is not linear gives the plane at p, and its
fidelity says how little that is.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from garrison.attacks.base import Attack, Goal
from garrison.attacks.checks import at_least
from garrison.attacks.exam import Clone, Loot
from garrison.attacks.extraction.ground import NO_ANSWER, Ground, Notebook
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts, SpentError
from garrison.types import Array, FloatArray

_ON_BOUNDARY = 16
"""Halvings of the way between the witnesses."""
_AT_ONCE = 16


class LowdMeek(Attack, frozen=True):
    """Find each weight of a linear model by a line search.

    Attributes:
        halvings: of each line search, after the boundary was bracketed; each makes a weight twice as exact.
        looks: most points that are drawn to find a witness of each class.
    """

    name: ClassVar[str] = "lowd-meek"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    halvings: int = 7
    looks: int = 500

    def __post_init__(self) -> None:
        at_least(self, 1, "halvings", "looks")

    def obstacle(self, facts: OracleFacts) -> str:
        if facts.regression:
            return "it needs classes, and the service answers real values"
        return "" if facts.classes == 2 else f"it finds one plane between two classes, and there are {facts.classes}"

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        ground = Ground.of(oracle.facts, knowledge)
        search = LineSearch(Notebook(oracle, ground), np.zeros(ground.features))
        own = ground.points(knowledge.surrogate)
        try:
            search.find_witnesses(rng, own, self.looks)
            if search.found:
                search.find_boundary()
                for place in rng.permutation(ground.features):
                    search.weigh(int(place), self.halvings)
        except SpentError:
            pass  # features that were not weighed count as 0
        told = {
            "questions a feature": oracle.rows / max(1, ground.features),
            "features weighed": float(search.weighed),
        }
        return Loot(_clone(ground, search), told)


class LineSearch:
    """The witnesses, the boundary between them, and the weights found so far.

    Attributes:
        weights: (features,), relative to the way's own weight, which is 1 towards class 1.
        point: (features,), on the boundary.
    """

    def __init__(self, notebook: Notebook, weights: FloatArray) -> None:
        self.notebook = notebook
        self.weights = weights
        self.weighed = 0
        self.label = NO_ANSWER
        self.point: FloatArray = np.zeros_like(weights)
        self._ends: list[FloatArray | None] = [None, None]
        self._way: FloatArray = np.zeros_like(weights)
        self._shift = 0.1

    @property
    def found(self) -> bool:
        """Whether there is a witness of each class."""
        return all(end is not None for end in self._ends)

    def find_witnesses(self, rng: np.random.Generator, own: FloatArray, looks: int) -> None:
        """Draw points until both classes were answered: evenly, in corners, and the thief's own rows."""
        for first in range(0, looks, _AT_ONCE):
            count = min(_AT_ONCE, looks - first)
            drawn = self.notebook.ground.uniform(rng, count)
            drawn[1::4] = np.sign(drawn[1::4])
            if len(own):
                drawn[2::4] = np.clip(own[rng.integers(len(own), size=len(drawn[2::4]))], -1.0, 1.0)
            points, labels = self.notebook.ask(drawn)
            for side in (0, 1):
                if self._ends[side] is None and (labels == side).any():
                    # The innermost of them leaves the searches the most room.
                    those = points[labels == side]
                    self._ends[side] = those[np.abs(those).max(axis=1).argmin()]
                self.label = side if (labels == side).any() else self.label
            if self.found:
                return

    def find_boundary(self) -> None:
        """Halve the way between the witnesses."""
        zero, one = self._ends
        if zero is None or one is None:
            return
        self._way = (one - zero) / float(np.abs(one - zero).max())
        for _ in range(_ON_BOUNDARY):
            points, labels = self.notebook.ask(((zero + one) / 2)[np.newaxis])
            zero, one = (points[0], one) if labels[0] == 0 else (zero, points[0])
        self.point = (zero + one) / 2

    def weigh(self, place: int, halvings: int) -> None:
        """The weight of one feature."""
        step = 1.0 if self.point[place] <= 0 else -1.0
        for _ in range(8):
            moved = self.point.copy()
            moved[place] = np.clip(moved[place] + step, -1.0, 1.0)
            shift = self._back(moved, halvings)
            if shift is not None:
                self.weights[place] = -shift / (moved[place] - self.point[place])
                self.weighed += 1
                self._shift = 0.5 * (self._shift + max(abs(shift), 1e-4))
                return
            step /= 3.0

    def _back(self, start: FloatArray, halvings: int) -> float | None:
        """How far from a start along the way the boundary lies; None where the box ends before it."""
        first = self._class_at(start, 0.0)
        sign = -1.0 if first == 1 else 1.0  # towards class 1 where it is 0
        near, far = 0.0, self._shift
        while self._class_at(start, sign * far) == first:
            if far >= self._room(start, sign):
                return None
            near, far = far, min(3.0 * far, self._room(start, sign))
        for _ in range(halvings):
            if far - near < 0.02 * self._shift:
                break
            middle = (near + far) / 2
            near, far = (middle, far) if self._class_at(start, sign * middle) == first else (near, middle)
        return sign * (near + far) / 2

    def _room(self, start: FloatArray, sign: float) -> float:
        """How far one may go from a start along the way within the box."""
        u = sign * self._way
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(u > 0, (1.0 - start) / u, np.where(u < 0, (-1.0 - start) / u, np.inf))
        return max(float(room.min()), 0.0)

    def _class_at(self, start: FloatArray, shift: float) -> int:
        _, labels = self.notebook.ask(np.clip(start + shift * self._way, -1.0, 1.0)[np.newaxis])
        return int(labels[0])


def _clone(ground: Ground, search: LineSearch) -> Clone:
    def answer(rows: Array) -> FloatArray:
        side = (ground.points(rows) - search.point) @ search.weights
        if not search.found:
            side = np.full(len(rows), 1.0 if search.label == 1 else -1.0)
        return np.stack([side <= 0, side > 0], axis=1).astype(np.float64)

    return answer
