"""Path finding: a decision tree, leaf by leaf, from the probabilities that it answers.

Tramer et al., "Stealing Machine Learning Models via Prediction APIs" (USENIX Security 2016), section 4.2, algorithm 1. All inputs
that reach one leaf get one answer, its *identity*. From an input the thief looks along every feature for where the identity changes;
what lies between is the leaf's box, and beyond each of its faces lies another leaf.

Three things differ from the paper, and save most of the questions or mend what it cannot do:

    what lies in a box that is known already is not asked again
    a place where one leaf ends on a feature is tried first where another one has to end, since one node makes many faces
    leaves that share an identity look like one along a line; points drawn from a box show it, and the box is cut until all agree

Invariant: with a large enough budget every box that is handed over gave one identity wherever it was asked. Not covered: a region that
no drawn point met, which is smaller the more points are drawn; answers that differ from row to row for another reason than the tree
(rounding is none, misinformation is), which lead to boxes that describe the answers, not the tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from garrison.attacks.base import Attack, Goal
from garrison.attacks.exam import Clone
from garrison.attacks.extraction.boxes import Box, Space
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts
from garrison.types import Array, BoolArray, FloatArray

_ROWS_AT_ONCE = 256
REFUSED = b""
"""The identity of what the service does not answer."""


class PathFinding(Attack, frozen=True):
    """Find every leaf of a tree, and what it answers.

    Attributes:
        epsilon: how exactly a threshold is found, in the feature's own units; whole-number features are found exactly.
        checks: points drawn from each box to see whether it is one leaf.
        doubts: the same for boxes that share their identity with another one, at the end.
        sweep: points drawn from everywhere at the end, half of them between surrogate rows; those in no box are explored.
    """

    name: ClassVar[str] = "path-finding"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    epsilon: float = 1e-3
    checks: int = 8
    doubts: int = 4
    sweep: int = 2000

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError("epsilon must be above 0")
        if min(self.checks, self.doubts, self.sweep) < 0:
            raise ValueError("checks, doubts and sweep must be at least 0")

    def obstacle(self, facts: OracleFacts) -> str:
        if not facts.soft:
            return "leaves are told apart by their probabilities, and the service releases labels alone"
        if not (np.isfinite(facts.low).all() and np.isfinite(facts.high).all()):
            return "it needs the range of every feature, and the service does not state all of them"
        return ""

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone:
        space = Space.of(oracle.facts, self.epsilon)
        surrogate = space.flat(knowledge.surrogate)
        explorer = Explorer(Tree(oracle, space), rng, surrogate, self.checks)
        try:
            explorer.explore(space.draw(rng, space.low, space.high, 1))
            for points in _sweeps(space, surrogate, self.sweep, rng):
                explorer.explore(explorer.tree.outside(points))
            if self.doubts:
                explorer.doubt(self.doubts)
        except SpentError:
            pass  # what is known by now is the loot
        tree = explorer.tree
        return lambda rows: tree.predict(space.flat(rows))


class SpentError(Exception):
    """The budget is used up."""


@dataclass(slots=True)
class Tree:
    """The service, and what is known of it.

    Attributes:
        thresholds: by feature, (last point before, first point behind) of each threshold found, rising.
    """

    oracle: MeteredOracle
    space: Space
    boxes: list[Box] = field(default_factory=list)
    thresholds: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    _asked: dict[bytes, tuple[bytes, FloatArray]] = field(default_factory=dict)
    _low: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    _high: FloatArray = field(default_factory=lambda: np.empty((0, 0)))

    def identities(self, points: FloatArray) -> list[bytes]:
        """What the service answers to points (n, features); those in a known box, or asked before, cost nothing."""
        place = self.place(points)
        rows = self.space.rows(points)
        keys = [row.tobytes() for row in rows]
        new = {key: i for i, key in enumerate(keys) if place[i] < 0 and key not in self._asked}
        if new:
            self._ask(rows, list(new.values()), list(new))
        return [self.boxes[p].identity if p >= 0 else self._asked[key][0] for p, key in zip(place, keys, strict=True)]

    def fresh_identities(self, points: FloatArray) -> list[bytes]:
        """`identities`, asked of the service also in known boxes."""
        boxes, self.boxes = self.boxes, []
        try:
            return self.identities(points)
        finally:
            self.boxes = boxes

    def shared(self) -> list[Box]:
        """The boxes whose identity another box has too."""
        counts = Counter(box.identity for box in self.boxes)
        return [box for box in self.boxes if counts[box.identity] > 1]

    def identity(self, point: FloatArray) -> bytes:
        return self.identities(point[np.newaxis])[0]

    def answer(self, point: FloatArray) -> FloatArray:
        """What the service answered to a point that was asked."""
        return self._asked[self.space.rows(point[np.newaxis])[0].tobytes()][1]

    def place(self, points: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The number of a known box for each point, -1 where there is none."""
        found = np.full(len(points), -1, dtype=np.int64)
        if not self.boxes:
            return found
        for first in range(0, len(points), _ROWS_AT_ONCE):
            part = points[first : first + _ROWS_AT_ONCE, np.newaxis]
            inside = np.logical_and.reduce((part >= self._low) & (part <= self._high), axis=2)
            found[first : first + _ROWS_AT_ONCE] = np.where(inside.any(axis=1), inside.argmax(axis=1), -1)
        return found

    def outside(self, points: FloatArray) -> list[FloatArray]:
        """Those of the points that lie in no known box."""
        return list(points[self.place(points) < 0])

    def add(self, box: Box) -> None:
        self.boxes.append(box)
        self._index()

    def remove_around(self, point: FloatArray, identity: bytes) -> None:
        """Drop every box that claims a point whose identity is another."""
        wrong = [((point >= b.low) & (point <= b.high)).all() and b.identity != identity for b in self.boxes]
        self.boxes = [b for b, bad in zip(self.boxes, wrong, strict=True) if not bad]
        self._index()

    def _index(self) -> None:
        self._low = np.array([b.low for b in self.boxes])
        self._high = np.array([b.high for b in self.boxes])

    def predict(self, points: FloatArray) -> FloatArray:
        """The answer of the box that holds each point, or of the nearest one; shape (n, classes)."""
        classes = self.space.facts.classes
        if not self.boxes:
            return np.full((len(points), classes), 1.0 / classes)
        place = self.place(points)
        width = np.where(self.space.high > self.space.low, self.space.high - self.space.low, 1.0)
        for i in np.flatnonzero(place < 0):
            away = np.maximum(self._low - points[i], 0) + np.maximum(points[i] - self._high, 0)
            place[i] = (away / width).sum(axis=1).argmin()
        return np.array([self.boxes[p].answer for p in place])

    def _ask(self, rows: Array, numbers: Sequence[int], keys: Sequence[bytes]) -> None:
        classes = self.space.facts.classes
        for first in range(0, len(numbers), _ROWS_AT_ONCE):
            part = numbers[first : first + _ROWS_AT_ONCE]
            if len(part) > self.oracle.remaining:
                raise SpentError
            answers = self.oracle.query(rows[part])
            p = np.full((len(part), classes), np.nan) if answers.probabilities is None else answers.probabilities
            for key, row, good in zip(keys[first:], p, answers.usable, strict=False):
                even = np.full(classes, 1.0 / classes)
                self._asked[key] = (row.tobytes(), row.astype(np.float64)) if good else (REFUSED, even)


@dataclass(slots=True)
class Explorer:
    """Goes from leaf to leaf."""

    tree: Tree
    rng: np.random.Generator
    surrogate: FloatArray
    checks: int

    def doubt(self, draws: int) -> None:
        """Look closer at boxes that share their identity with another: along a line they may have been taken for one leaf.

        Raises:
            SpentError: the budget is used up.
        """
        sure: list[Box] = []
        while doubtful := [box for box in self.tree.shared() if not any(box is other for other in sure)]:
            box = doubtful[0]
            sure.append(box)
            points = np.array([self._draw(box.low, box.high) for _ in range(draws)])
            found = self.tree.fresh_identities(points)
            wrong = [i for i, identity in enumerate(found) if identity != box.identity]
            for i in wrong:
                self.tree.remove_around(points[i], found[i])
            if wrong:
                self.explore([*points, *points[wrong]])  # the last come first: they bound the others

    def explore(self, points: Iterable[FloatArray]) -> None:
        """Find the boxes of these points, and of all that are reached from there.

        Raises:
            SpentError: the budget is used up.
        """
        waiting = list(points)
        while waiting:
            point = waiting.pop()
            if self.tree.place(point[np.newaxis])[0] < 0:
                waiting += self._box_of(point)

    def _box_of(self, x: FloatArray) -> list[FloatArray]:
        """Add the box around x; returns points behind its faces, and points that it was cut off from."""
        tree, space = self.tree, self.tree.space
        own = tree.identity(x)
        low, high = space.low.copy(), space.high.copy()
        behind: list[FloatArray] = []
        ends = np.array([_moved(x, i, end[i]) for i in range(len(x)) for end in (low, high)])
        for k, identity in enumerate(tree.identities(ends)):
            if identity != own:
                i, bound = k // 2, (low, high)[k % 2]
                near, far = self._change(x, i, float(bound[i]))
                bound[i] = 0.5 * (near + far)
                behind.append(_moved(x, i, far))
        self._cut_from_known(x, own, low, high)
        behind += self._check(x, own, low, high)
        tree.add(Box(low, high, own, tree.answer(x)))
        return behind

    def _change(self, x: FloatArray, i: int, end: float) -> tuple[float, float]:
        """Where, from x along feature i to an end of another identity, it changes: the points before and behind.

        Thresholds that are known are tried first, from the middle one on, as if each lay on x's own way.
        """
        own = self.tree.identity(x)
        known = self.tree.thresholds.setdefault(i, [])
        near, far = float(x[i]), end
        rising = far > near
        between = [t if rising else t[::-1] for t in known if min(near, far) < t[0] and t[1] < max(near, far)]
        between = between if rising else between[::-1]
        while between:
            middle = len(between) // 2
            before, after = between[middle]
            if self.tree.identity(_moved(x, i, after)) == own:
                near, between = after, between[middle + 1 :]
            elif self.tree.identity(_moved(x, i, before)) == own:
                return before, after
            else:
                far, between = before, between[:middle]
        while (middle_at := self.tree.space.middle(min(near, far), max(near, far), i)) is not None:
            if self.tree.identity(_moved(x, i, middle_at)) == own:
                near = middle_at
            else:
                far = middle_at
        known.append((min(near, far), max(near, far)))
        known.sort()
        return near, far

    def _cut_from_known(self, x: FloatArray, own: bytes, low: FloatArray, high: FloatArray) -> None:
        """Make the box end where it would overlap a known one of another identity."""
        for box in self.tree.boxes:
            if box.identity == own or (np.minimum(high, box.high) <= np.maximum(low, box.low)).any():
                continue
            # Of the features on which x lies outside the other box, the one that costs the least of this one.
            left = np.where(x < box.low, (high - box.low) / (high - low), np.inf)
            right = np.where(x > box.high, (box.high - low) / (high - low), np.inf)
            i = int(np.minimum(left, right).argmin())
            if left[i] <= right[i]:
                high[i] = box.low[i]
            else:
                low[i] = box.high[i]

    def _check(self, x: FloatArray, own: bytes, low: FloatArray, high: FloatArray) -> list[FloatArray]:
        """Draw points from the box; where one has another identity, cut the box between them and draw again."""
        off: list[FloatArray] = []
        agreed = 0
        while agreed < self.checks:
            point = self._draw(low, high)
            if self.tree.identity(point) == own:
                agreed += 1
                continue
            agreed = 0
            i, near, far = self._walk(x, point, own)
            bound = high if x[i] <= near < far or x[i] < far else low
            bound[i] = 0.5 * (near + far)
            off.append(point)
        return off

    def _draw(self, low: FloatArray, high: FloatArray) -> FloatArray:
        """A point of a box: drawn evenly, or every other time with the values of surrogate rows where some lie in the box."""
        point: FloatArray = self.tree.space.draw(self.rng, low, high, 1)[0]
        if len(self.surrogate) and self.rng.random() < 0.5:
            values = self.surrogate[self.rng.integers(len(self.surrogate), size=len(low)), np.arange(len(low))]
            inside: BoolArray = (values >= low) & (values <= high)
            point[inside] = values[inside]
        return point

    def _walk(self, x: FloatArray, y: FloatArray, own: bytes) -> tuple[int, float, float]:
        """A feature, and where on it the identity changes, on a way from x to y that changes one feature after the other."""
        order = self.rng.permutation(len(x))

        def station(k: int) -> FloatArray:
            point = x.copy()
            point[order[:k]] = y[order[:k]]
            return point

        same, other = 0, len(x)
        while other - same > 1:
            middle = (same + other) // 2
            if self.tree.identity(station(middle)) == own:
                same = middle
            else:
                other = middle
        i = int(order[same])
        near, far = self._change(station(same), i, float(y[i]))
        return i, near, far


def _moved(x: FloatArray, i: int, value: float) -> FloatArray:
    found = x.copy()
    found[i] = value
    return found


def _sweeps(space: Space, surrogate: FloatArray, count: int, rng: np.random.Generator) -> Iterable[FloatArray]:
    """Points from everywhere, then points that take each feature from a surrogate row of their own."""
    half = count // 2
    yield space.draw(rng, space.low, space.high, half)
    if len(surrogate):
        mixed = surrogate[rng.integers(len(surrogate), size=(count - half, len(space.low))), np.arange(len(space.low))]
        yield np.clip(mixed, space.low, space.high)
