"""HopSkipJump: walk along the boundary by labels alone (decision-based).

Chen, Jordan and Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack" (IEEE S&P 2020), algorithm 2: from a picture that is named
another class go back to the boundary by halving, estimate its direction there from random steps, jump, and halve again; the changes get smaller as long as
there are questions left.

Applies to every classifier with a stated range, whatever of the answer is released; not only to pictures. Not covered: the targeted form.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from garrison.attacks.evasion.base import Evasion, Search, Start
from garrison.attacks.oracle import Answers
from garrison.types import BoolArray, FloatArray

_FIRST_STEP = 0.1
_SMALLEST_JUMP = 1e-6
Asking = Generator[FloatArray, Answers, BoolArray]
Finding = Generator[FloatArray, Answers, FloatArray]


class HopSkipJump(Evasion, frozen=True):
    """Estimate the boundary's direction, jump, come back to the boundary.

    Attributes:
        steps: random steps of the first estimate; they grow with the root of the rounds.
        most_steps: of any estimate.
        starts: pictures that are tried to begin with.
        begin: with noise, or with the attacker's pictures of other classes (and noise where none of them does).
    """

    name: ClassVar[str] = "hopskipjump"

    steps: int = 100
    most_steps: int = 10_000
    starts: int = 50
    begin: Literal["noise", "picture"] = "noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.steps, self.most_steps, self.starts) < 1:
            raise ValueError("hopskipjump: steps, most_steps and starts must be at least 1")

    def search(self, start: Start, rng: np.random.Generator) -> Search:
        walk = _Walk(start, l2=self.norm == "l2")
        begun = yield from self._begun(walk, rng)
        if begun is None:
            return start.x
        before = walk.distance(begun)
        near = yield from walk.to_boundary(begun)
        rounds = 1
        while walk.left > 0:
            reach = _FIRST_STEP if rounds == 1 else walk.reach(before)
            count = min(int(self.steps * math.sqrt(rounds)), self.most_steps, walk.left)
            way = yield from walk.direction(near, reach, count, rng)
            jumped = yield from walk.jump(near, way, walk.distance(near) / math.sqrt(rounds))
            if jumped is not None:
                before = walk.distance(jumped)
                tried = yield from walk.to_boundary(jumped)
                near = min(near, tried, key=walk.distance)
            rounds += 1
        return near

    def _begun(self, walk: _Walk, rng: np.random.Generator) -> Generator[FloatArray, Answers, FloatArray | None]:
        """A picture that is named another class; None where none was found."""
        start = walk.start
        own = rng.permutation(len(start.others))[: self.starts] if self.begin == "picture" else ()
        for number in range(self.starts):
            if walk.left < 1:
                break
            tried = start.others[own[number]] if number < len(own) else rng.random(start.x.shape)
            if (yield from walk.ask(tried[np.newaxis]))[0]:
                return tried
        return None


@dataclass(slots=True)
class _Walk:
    """One picture's walk, and the questions that are left for it."""

    start: Start
    l2: bool
    left: int = 0

    def __post_init__(self) -> None:
        self.left = self.start.budget

    @property
    def fineness(self) -> float:
        """theta: how finely the boundary is found."""
        size = self.start.x.size
        return float(size**-1.5) if self.l2 else float(size**-2.0)

    def reach(self, before: float) -> float:
        """delta: how far random steps go, by the distance before the last return to the boundary."""
        size = self.start.x.size
        return max((math.sqrt(size) if self.l2 else size) * self.fineness * before, _SMALLEST_JUMP)

    def distance(self, x: FloatArray) -> float:
        change = x - self.start.x
        return float(np.sqrt((change**2).sum()) if self.l2 else np.abs(change).max())

    def ask(self, rows: FloatArray) -> Asking:
        """Which of the rows are named another class; rows beyond the budget are not asked, and are none."""
        found = np.zeros(len(rows), dtype=np.bool_)
        some = rows[: self.left]
        if len(some):
            self.left -= len(some)
            found[: len(some)] = self.start.fooled((yield some))
        return found

    def to_boundary(self, far: FloatArray) -> Finding:
        """The nearest picture on the way from `far` to the start that is still named another class, by halving."""
        low, high = 0.0, 1.0 if self.l2 else self.distance(far)
        finest = self.fineness if self.l2 else min(self.fineness, self.fineness * high)
        while high - low > finest and self.left > 0:
            middle = (low + high) / 2
            fooled = yield from self.ask(self._between(far, middle)[np.newaxis])
            low, high = (low, middle) if fooled[0] else (middle, high)
        return self._between(far, high)

    def _between(self, far: FloatArray, share: float) -> FloatArray:
        x = self.start.x
        return (1 - share) * x + share * far if self.l2 else np.clip(far, x - share, x + share)

    def direction(self, near: FloatArray, reach: float, count: int, rng: np.random.Generator) -> Finding:
        """The direction in which the boundary is crossed: an average of random steps, weighted by their labels; equation 16."""
        shape = (count, *near.shape)
        steps = rng.normal(size=shape) if self.l2 else rng.uniform(-1, 1, shape)
        axes = tuple(range(1, steps.ndim))
        steps /= np.sqrt((steps**2).sum(axis=axes, keepdims=True))
        rows = np.clip(near + reach * steps, 0.0, 1.0)
        steps = (rows - near) / reach
        fooled = yield from self.ask(rows)
        sign = np.where(fooled, 1.0, -1.0)
        mean = sign.mean()
        weights = sign if abs(mean) == 1.0 else sign - mean
        found: FloatArray = np.tensordot(weights, steps, axes=1) / count
        if not self.l2:
            return np.sign(found)
        length = float(np.sqrt((found**2).sum()))
        return found / length if length > 0 else found

    def jump(self, near: FloatArray, way: FloatArray, size: float) -> Generator[FloatArray, Answers, FloatArray | None]:
        """As far as `size` in that direction, or half as far, and so on, until the class is another; None where that never is."""
        while size > _SMALLEST_JUMP and self.left > 0:
            tried = np.clip(near + size * way, 0.0, 1.0)
            if (yield from self.ask(tried[np.newaxis]))[0]:
                return tried
            size /= 2
        return None
