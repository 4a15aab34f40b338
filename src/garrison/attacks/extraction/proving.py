"""The last check of path finding: is what was found the whole tree? Inputs are asked anew until enough agree in a row.

A line from leaf to leaf shows nothing where both share their answer, so that a leaf between them, or a test below, stays hidden. How often
that happens is the chance that two leaves share their answer; by it goes how many inputs are asked. They are drawn in four ways in turn,
since a hidden leaf may be small in one of them and not in another:

    evenly              from the stated range
    between thresholds  each gap between known thresholds of a feature as often: small leaves lie between near thresholds
    near the ends       crowded towards the lower or upper ends, as amounts and counts are whose range has a long tail
    surrogate rows      as the thief has them

What follows is a bound, no proof: where n inputs drawn in one way agree, at most 1 - alpha^(1/n) of all such inputs are answered otherwise,
with a confidence of 1 - alpha (Clopper and Pearson, Biometrika 1934). A check that found an error is followed by a new one; alpha of the r-th
is 0.05 / (r (r + 1)), so that the confidence over all of them is 95 %. Where the budget ends before the search does, some questions that were
kept back show how much of what was found is wrong.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from garrison.attacks.extraction.leaves import Tree
from garrison.attacks.oracle import MeteredOracle
from garrison.confidence import upper_limit
from garrison.types import FloatArray

_ROWS = 60
"""Inputs asked at once."""
_NARROW = 4
"""Gaps between thresholds are drawn from where they are wider than so many of the steps to which a threshold is known."""
_MOST_CROWDED = 4
_MOST_CHECKS = 200
"""Whoever still finds errors then is not at a tree."""
_ALPHA, _SETTLED = 0.05, 0.1


class Draw(enum.StrEnum):
    """How inputs are drawn."""

    EVEN = "drawn evenly"
    GAPS = "between thresholds"
    ENDS = "near the ends"
    SURROGATE = "from surrogate rows"


_TURNS = (Draw.EVEN, Draw.GAPS, Draw.EVEN, Draw.ENDS, Draw.GAPS, Draw.SURROGATE)


def kept_back(least: int, oracle: MeteredOracle) -> int:
    """Questions to keep back for a check of what was found, where the budget ends before the search does: at most a tenth of it."""
    return min(least, oracle.remaining // 10)


@dataclass(slots=True)
class Prover:
    """Checks a tree, as often as it was mended.

    Attributes:
        tree: what was found, and the service.
        rng: of the inputs.
        surrogate: (rows, features), the thief's rows; may be empty.
        least: inputs that have to agree, at least; 0 checks nothing.
        weight: so many inputs have to agree for each question of the search, times the chance that two leaves share their answer: with 2
            and two answers, equally frequent, as many as the search took.
        asked, wrong: by way of drawing, the inputs of the last check, and those of them that did not agree.
    """

    tree: Tree
    rng: np.random.Generator
    surrogate: FloatArray
    least: int
    weight: float = 2.0
    asked: Counter[Draw] = field(default_factory=Counter)
    wrong: Counter[Draw] = field(default_factory=Counter)
    _checks: int = 0
    _rows: int = 0

    def errors(self) -> tuple[FloatArray, Sequence[bytes]]:
        """Inputs (n, features) that lie in no box or in one of another identity, and their identities; none where enough agreed.

        Raises:
            SpentError: the budget is used up.
        """
        if not self.least or self._checks == _MOST_CHECKS:
            return np.empty((0, len(self.tree.space.low))), ()
        self._begin()
        wanted = max(self.least, round(self.weight * self.tree.likeness() * (self.tree.oracle.rows - self._rows)))
        while self.asked.total() < wanted:
            drawn, points = self._drawn(_ROWS)
            place, before = self.tree.place(points), self.tree.oracle.rows
            found = self.tree.fresh_identities(points)
            self._rows += self.tree.oracle.rows - before
            boxes = self.tree.boxes
            wrong = [i for i, p in enumerate(place) if p < 0 or boxes[p].identity != found[i]]
            if wrong:
                self.asked.clear()  # the tree that they were asked of is mended now
                return points[wrong], [found[i] for i in wrong]
            self.asked.update(drawn)
        return np.empty((0, len(self.tree.space.low))), ()

    def measure(self) -> None:
        """Where the budget ended before a check did: ask what was kept back for this, and count what does not agree."""
        tree = self.tree
        if tree.is_smooth() or self.asked.total() >= tree.kept_back:
            return
        self._begin()
        drawn, points = self._drawn(tree.kept_back)
        tree.kept_back, claimed = 0, tree.predict(points)
        tree.fresh_identities(points)
        self.asked.update(drawn)
        pairs = zip(drawn, points, claimed, strict=True)
        self.wrong.update(draw for draw, point, answer in pairs if not np.array_equal(answer, tree.answer(point)))

    def _begin(self) -> None:
        self._checks += 1
        self.asked.clear()
        self.wrong.clear()

    def _drawn(self, count: int) -> tuple[list[Draw], FloatArray]:
        turns = [turn for turn in _TURNS if turn is not Draw.SURROGATE or len(self.surrogate)]
        drawn = [turns[k % len(turns)] for k in range(count)]
        points = np.array([self._point(turn) for turn in drawn]).reshape(count, len(self.tree.space.low))
        return drawn, self.tree.space.narrowed(points)

    @property
    def settled(self) -> bool:
        """Whether little can be missing: at most one evenly drawn input in ten is answered otherwise, with 95 % confidence."""
        return self.bound(Draw.EVEN) <= _SETTLED

    def told(self) -> Mapping[str, float]:
        """What the last check covers, and the bounds that follow from it."""
        found = {f"last check, inputs {draw}": float(self.asked[draw]) for draw in Draw}
        found |= {"last check, inputs answered otherwise": float(self.wrong.total())}
        return found | {f"answered otherwise, {d}, at most": self.bound(d) for d in (Draw.EVEN, Draw.SURROGATE)}

    def bound(self, draw: Draw) -> float:
        """The largest share of inputs drawn so to which the tree as found answers otherwise than the service, one-sided 95 %; 1 where
        none was asked since it was last mended."""
        alpha = _ALPHA / (self._checks * (self._checks + 1)) if self._checks else 1.0
        return upper_limit(self.wrong[draw], self.asked[draw], 1 - alpha)

    def _point(self, draw: Draw) -> FloatArray:
        space, rng = self.tree.space, self.rng
        if draw is Draw.SURROGATE:
            row: FloatArray = np.clip(self.surrogate[rng.integers(len(self.surrogate))], space.low, space.high)
            return row
        point = space.draw(rng, space.whole)
        if draw is Draw.GAPS:
            for i, known in self.tree.thresholds.items():
                point[i] = self._in_a_gap(i, [self.tree.threshold(*pair) for pair in known])
        if draw is Draw.ENDS:
            numbers = [i for i in range(len(point)) if i not in space.values]
            share = rng.random(len(point)) ** 2.0 ** rng.integers(1, _MOST_CROWDED + 1)
            crowded = space.low + (space.high - space.low) * (share if rng.integers(2) else 1.0 - share)
            point[numbers] = crowded[numbers]
        return point

    def _in_a_gap(self, i: int, cuts: list[float]) -> float:
        space = self.tree.space
        ends = [float(space.low[i]), *cuts, float(space.high[i])]
        # What is narrower is one threshold, found twice.
        gaps = [(a, b) for a, b in pairwise(ends) if b - a > _NARROW * space.step[i]]
        if not gaps or i in space.values:
            return float(space.draw(self.rng, space.whole)[i])
        low, high = gaps[int(self.rng.integers(len(gaps)))]
        return float(space.draw(self.rng, space.whole.cut(i, low, below=False).cut(i, high, below=True))[i])
