"""What path finding knows of a tree: what was asked, the leaves found, the thresholds found.

Invariant: a point is asked once. A point in a known leaf is not asked unless a caller doubts the leaf.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np

from garrison.attacks.draws import has_range
from garrison.attacks.extraction.boxes import Box, Region, Space
from garrison.attacks.oracle import MeteredOracle, OracleFacts, SpentError
from garrison.types import Array, BoolArray, FloatArray

_FEWEST_TOLD, _MOST_TOLD = 100, 2000
"""Between so many questions it is looked whether the model has leaves at all."""
_SMOOTH = 0.9
_ROWS_AT_ONCE = 256
REFUSED = b""
"""The identity of what the service does not answer."""


def tree_obstacle(facts: OracleFacts) -> str:
    """Why the leaves of a tree cannot be told apart by such a service's answers."""
    if not facts.soft and not facts.regression:
        return "leaves are told apart by their probabilities or values, and the service releases neither"
    if not has_range(facts):
        return "it needs the range of every feature, and the service does not state all of them"
    return ""


def moved(x: FloatArray, i: int, value: float) -> FloatArray:
    found = x.copy()
    found[i] = value
    return found


@dataclass(slots=True)
class Tree:
    """The service, and what is known of it.

    Attributes:
        boxes: the leaves.
        thresholds: by feature, (last point before, first point behind) of each threshold found, rising.
        refused: questions without an answer.
        kept_back: questions of the budget that are not asked for now.
    """

    oracle: MeteredOracle
    space: Space
    boxes: list[Box] = field(default_factory=list)
    thresholds: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    refused: int = 0
    kept_back: int = 0
    _asked: dict[bytes, tuple[bytes, FloatArray]] = field(default_factory=dict)
    _low: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    _high: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    _allowed: dict[int, BoolArray] = field(default_factory=dict)

    def identities(self, points: FloatArray) -> list[bytes]:
        """What the service answers to points (n, features); those in a known leaf, or asked before, cost nothing."""
        place = self.place(self.space.narrowed(points))
        rows = self.space.rows(points)
        keys = [row.tobytes() for row in rows]
        new = {key: i for i, key in enumerate(keys) if place[i] < 0 and key not in self._asked}
        if new:
            self._ask(rows, list(new.values()), list(new))
        return [self.boxes[p].identity if p >= 0 else self._asked[key][0] for p, key in zip(place, keys, strict=True)]

    def fresh_identities(self, points: FloatArray) -> list[bytes]:
        """`identities`, asked of the service also in known leaves."""
        boxes, self.boxes = self.boxes, []
        try:
            return self.identities(points)
        finally:
            self.boxes = boxes

    def identity(self, point: FloatArray) -> bytes:
        return self.identities(point[np.newaxis])[0]

    def answer(self, point: FloatArray) -> FloatArray:
        """What the service answered to a point that was asked."""
        return self._asked[self.space.rows(point[np.newaxis])[0].tobytes()][1]

    def is_smooth(self) -> bool:
        """Whether nearly every question had an answer of its own: a model that has no leaves."""
        asked = len(self._asked)
        if not _FEWEST_TOLD <= asked <= _MOST_TOLD:
            return False
        return len({identity for identity, _ in self._asked.values()}) > _SMOOTH * asked

    def shared(self) -> list[Box]:
        """The leaves whose identity another leaf has too."""
        counts = Counter(box.identity for box in self.boxes)
        return [box for box in self.boxes if counts[box.identity] > 1]

    def likeness(self) -> float:
        """The chance that two leaves share their identity, in [0, 1]: of a line that leads from one to another, that it shows nothing."""
        counts, leaves = Counter(box.identity for box in self.boxes), len(self.boxes)
        return sum(c * (c - 1) for c in counts.values()) / max(1, leaves * (leaves - 1))

    def place(self, points: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The number of a known leaf for each point, -1 where there is none."""
        found = np.full(len(points), -1, dtype=np.int64)
        if not self.boxes:
            return found
        for first in range(0, len(points), _ROWS_AT_ONCE):
            part = points[first : first + _ROWS_AT_ONCE]
            inside = self._inside(part)
            found[first : first + _ROWS_AT_ONCE] = np.where(inside.any(axis=1), inside.argmax(axis=1), -1)
        return found

    def _inside(self, points: FloatArray) -> BoolArray:
        wide = points[:, np.newaxis]
        inside: BoolArray = np.logical_and.reduce((wide > self._low) & (wide <= self._high), axis=2)
        for i, allowed in self._allowed.items():
            known = np.isfinite(points[:, i])
            numbers = self.space.number_of(i, np.nan_to_num(points[:, i]))
            inside &= allowed[:, numbers].T & known[:, np.newaxis]
        return inside

    def outside(self, points: FloatArray) -> list[FloatArray]:
        """Those of the points that lie in no known leaf."""
        return list(points[self.place(points) < 0])

    def add(self, box: Box) -> None:
        self.boxes.append(box)
        self._index()

    def remove(self, box: Box) -> None:
        self.boxes = [other for other in self.boxes if other is not box]
        self._index()

    def remove_wrong(self, points: FloatArray, identities: Sequence[bytes]) -> list[tuple[Box, FloatArray]]:
        """Drop every leaf that claims one of the points (n, features) and has another identity than that.

        Returns:
            Each with such a point.
        """
        if not self.boxes:
            return []
        wrong, others = [], []
        for box, claims in zip(self.boxes, self._inside(points).T, strict=True):
            bad = [i for i, claimed in enumerate(claims) if claimed and identities[i] != box.identity]
            if bad:
                wrong.append((box, points[bad[0]]))
            else:
                others.append(box)
        self.boxes = others
        self._index()
        return wrong

    def merge(self) -> None:
        """Make one of boxes that share their identity and are one box together."""
        merged = True
        while merged:
            merged = False
            for i in range(len(self.space.low)):
                rows: dict[tuple[object, ...], list[Box]] = {}
                for box in self.boxes:
                    rows.setdefault((box.identity, *box.region.but(i)), []).append(box)
                boxes = [joined for row in rows.values() for joined in _joined(row, i)]
                merged = merged or len(boxes) < len(self.boxes)
                self.boxes = boxes
        self._index()

    def _index(self) -> None:
        # With no box at all there is still one column a feature.
        low, high = (
            np.array([edge(b.region) for b in self.boxes]).reshape(len(self.boxes), len(self.space.low))
            for edge in (attrgetter("low"), attrgetter("high"))
        )
        categories = list(self.space.values)
        self._low, self._high = (
            np.where(low <= self.space.low, -np.inf, low),
            np.where(high >= self.space.high, np.inf, high),
        )
        if self.boxes and categories:
            self._low[:, categories], self._high[:, categories] = -np.inf, np.inf
        self._allowed = {i: np.array([b.region.allowed[i] for b in self.boxes]) for i in categories}

    def predict(self, points: FloatArray) -> FloatArray:
        """The answer of the leaf that holds each point, or of the nearest one; shape (n, classes)."""
        facts = self.space.facts
        if not self.boxes:
            return np.full((len(points), facts.classes), 0.0 if facts.regression else 1.0 / facts.classes)
        place = self.place(points)
        width = np.where(self.space.high > self.space.low, self.space.high - self.space.low, 1.0)
        for i in np.flatnonzero(place < 0):
            away = (np.maximum(self._low - points[i], 0) + np.maximum(points[i] - self._high, 0)) / width
            others = sum(
                (~allowed[:, self.space.number_of(k, points[i : i + 1, k])[0]] for k, allowed in self._allowed.items()),
                0,
            )
            place[i] = (away.sum(axis=1) + others).argmin()
        return np.array([self.boxes[p].answer for p in place])

    def change(self, x: FloatArray, i: int, end: float) -> tuple[float, float]:
        """Where, from x along feature i to an end of another identity, it changes: the points before and behind.

        Thresholds that are known are tried first, from the middle one on, as if each lay on x's own way. On a category these are
        the two values themselves.
        """
        if i in self.space.values:
            return float(x[i]), end
        own = self.identity(x)
        known = self.thresholds.setdefault(i, [])
        near, far = float(x[i]), end
        rising = far > near
        between = [t if rising else t[::-1] for t in known if min(near, far) < t[0] and t[1] < max(near, far)]
        between = between if rising else between[::-1]
        while between:
            middle = len(between) // 2
            before, after = between[middle]
            if self.identity(moved(x, i, after)) == own:
                near, between = after, between[middle + 1 :]
            elif self.identity(moved(x, i, before)) == own:
                return before, after
            else:
                far, between = before, between[:middle]
        grains: dict[float, float] = {}
        while (next_at := self.space.between(min(near, far), max(near, far), i, grains)) is not None:
            at, grains[at] = next_at
            if self.identity(moved(x, i, at)) == own:
                near = at
            else:
                far = at
        first, last = self._known_as(i, min(near, far), max(near, far))
        return (first, last) if rising else (last, first)

    def _known_as(self, i: int, first: float, last: float) -> tuple[float, float]:
        """Keep a threshold of feature i. Two of which the last point before and the first behind overlap are one, and known as well as both
        say: boxes that end there end at the same number."""
        known = self.thresholds[i]
        while same := [t for t in known if t[0] < last and first < t[1]]:
            first, last = max(first, same[0][0]), min(last, same[0][1])
            known.remove(same[0])
        known.append((first, last))
        known.sort()
        return first, last

    def threshold(self, near: float, far: float) -> float:
        return self.space.threshold(min(near, far), max(near, far))

    def corner(self, rng: np.random.Generator, region: Region, *, high: bool) -> FloatArray:
        """The lowest or the highest numbers of a box, with any values of its categories. The first test that cuts a box into two
        has these two on different sides."""
        point = self.space.draw(rng, region)
        for i in range(len(point)):
            if i not in self.space.values:
                point[i] = self.space.ends(region, i)[int(high)]
        return point

    def draw(self, rng: np.random.Generator, region: Region, surrogate: FloatArray) -> FloatArray:
        """A point of a box: drawn evenly; or between known thresholds, each gap as often; or with surrogate rows' values."""
        point = self.space.draw(rng, region)
        way = rng.integers(3)
        if way == 1:
            for i, known in self.thresholds.items():
                cuts = [self.threshold(*t) for t in known]
                gaps = sorted({region.low[i], region.high[i], *(c for c in cuts if region.low[i] < c < region.high[i])})
                if len(gaps) > 2:
                    k = int(rng.integers(len(gaps) - 1))
                    point[i] = self.space.draw(
                        rng, region.cut(i, gaps[k], below=False).cut(i, gaps[k + 1], below=True)
                    )[i]
        elif way == 2 and len(surrogate):
            values = surrogate[rng.integers(len(surrogate), size=len(point)), np.arange(len(point))]
            inside: BoolArray = (values > region.low) & (values <= region.high)
            for i, allowed in region.allowed.items():
                inside[i] = allowed[self.space.number_of(i, values[i : i + 1])[0]]
            point[inside] = values[inside]
        return point

    def _ask(self, rows: Array, numbers: Sequence[int], keys: Sequence[bytes]) -> None:
        facts = self.space.facts
        for first in range(0, len(numbers), _ROWS_AT_ONCE):
            part = numbers[first : first + _ROWS_AT_ONCE]
            if len(part) > self.oracle.remaining - self.kept_back:
                raise SpentError
            answers = self.oracle.query(rows[part])
            p = answers.values if facts.regression else answers.probabilities
            p = np.full((len(part), facts.classes), np.nan) if p is None else p
            even = np.full(facts.classes, 0.0 if facts.regression else 1.0 / facts.classes)
            for key, row, good in zip(keys[first:], p, answers.usable, strict=False):
                self.refused += not good
                self._asked[key] = (row.tobytes(), row.astype(np.float64)) if good else (REFUSED, even)


def _joined(row: Sequence[Box], i: int) -> list[Box]:
    """Boxes of one identity that differ in feature i alone, those that touch as one."""
    found: list[Box] = []
    for box in sorted(row, key=lambda box: float(box.region.low[i])):
        both = found[-1].region.joined(box.region) if found else None
        if both is None:
            found.append(box)
        else:
            found[-1] = Box(both, box.identity, box.answer, box.point)
    return found
