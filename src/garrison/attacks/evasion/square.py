"""Square attack: random search over square patches, without gradients (score-based; labels do with more questions).

Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a query-efficient black-box adversarial attack via random search" (ECCV 2020), algorithms 1
to 3. The loss is the margin log p_y - max_k log p_k, which is the paper's margin of logits whatever their scale. Where answers are labels the margin is 1 or
-1, so that every step that changes nothing is taken: a random walk on the ball's surface, which is not in the paper.

Applies to classifiers of pictures with a stated range; rounded and top-k answers are taken for what they say.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from garrison.attacks.evasion.base import Evasion, Search, Start, needs_pictures
from garrison.attacks.oracle import Answers, OracleFacts
from garrison.types import FloatArray

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Steps of 10,000 at which the share of the picture that a square covers is halved."""
_OF = 10_000
_SMALLEST = 1e-12
_REDRAWS = 10
_TILES = 5
_FEWEST_PIXELS = 3


class Square(Evasion, frozen=True):
    """Put squares of the largest allowed change where the margin falls.

    Attributes:
        covered: share of the picture that the first squares cover; falls from there.
    """

    name: ClassVar[str] = "square"

    covered: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.covered <= 1:
            raise ValueError(f"square: covered must be above 0 and at most 1, found {self.covered}")

    def obstacle(self, facts: OracleFacts) -> str:
        return super().obstacle(facts) or needs_pictures(facts)

    def search(self, start: Start, rng: np.random.Generator) -> Search:
        l2 = self.norm == "l2"
        best = _tiles(start.x, self.epsilon, rng) if l2 else _stripes(start.x, self.epsilon, rng)
        lowest = margin((yield best[np.newaxis]), start)
        asked = 1
        while lowest >= 0 and asked < start.budget:
            side = side_of(self.covered, asked / start.budget, start.x.shape, odd=l2)
            tried = self._moved(best, start.x, side, rng)
            found = margin((yield tried[np.newaxis]), start)
            asked += 1
            if found < lowest or (found == lowest and not start.soft):
                best, lowest = tried, found
        return best

    def _moved(self, best: FloatArray, x: FloatArray, side: int, rng: np.random.Generator) -> FloatArray:
        """Another picture to try; another draw where nothing changes."""
        move = _move_l2 if self.norm == "l2" else _move_linf
        for _ in range(_REDRAWS):
            tried = move(best, x, self.epsilon, side, rng)
            if not np.array_equal(tried, best):
                break
        return tried


def margin(answers: Answers, start: Start) -> float:
    """Below 0 where the one row asked is named another class; infinite where it got no answer."""
    if not answers.usable[0]:
        return math.inf
    if answers.probabilities is None:
        return -1.0 if answers.labels[0] != start.label else 1.0
    logs = np.log(np.maximum(np.nan_to_num(answers.probabilities[0].astype(np.float64)), _SMALLEST))
    own, logs[start.label] = logs[start.label], -np.inf
    found = float(own - logs.max())
    # Of equal ones the label that is answered decides.
    return -_SMALLEST if found >= 0 and answers.labels[0] != start.label else found


def side_of(covered: float, share: float, shape: tuple[int, ...], *, odd: bool) -> int:
    """Side of the squares, in pixels, when that share of the budget is gone."""
    height, width = shape[1:]
    halvings = sum(share * _OF > step for step in HALVED_AT)
    side = round(math.sqrt(covered / 2**halvings * height * width))
    if odd:
        side = max(side, _FEWEST_PIXELS)
        side += 1 - side % 2
    return max(1, min(side, height - 1 if height > 1 else 1, width - 1 if width > 1 else 1))


def _stripes(x: FloatArray, epsilon: float, rng: np.random.Generator) -> FloatArray:
    """Vertical stripes of one pixel: to them convolutions are most sensitive."""
    channels, _, width = x.shape
    return np.clip(x + epsilon * rng.choice((-1.0, 1.0), (channels, 1, width)), 0.0, 1.0)


def _move_linf(best: FloatArray, x: FloatArray, epsilon: float, side: int, rng: np.random.Generator) -> FloatArray:
    """Algorithm 2: a square whose every channel moves all the way up or down."""
    where = _window(x.shape, side, rng)
    tried = best.copy()
    tried[where] = np.clip(x[where] + epsilon * rng.choice((-1.0, 1.0), (x.shape[0], 1, 1)), 0.0, 1.0)
    return tried


def _window(shape: tuple[int, ...], side: int, rng: np.random.Generator) -> tuple[slice, slice, slice]:
    down, across = (int(rng.integers(0, size - side + 1)) for size in shape[1:])
    return slice(None), slice(down, down + side), slice(across, across + side)


def _tiles(x: FloatArray, epsilon: float, rng: np.random.Generator) -> FloatArray:
    """A grid of tiles, each with the bump of algorithm 3."""
    channels, height, width = x.shape
    side = max(1, min(height, width) // _TILES)
    change = np.zeros(x.shape)
    for down in range(0, height - side + 1, side):
        for across in range(0, width - side + 1, side):
            signs = rng.choice((-1.0, 1.0), (channels, 1, 1))
            change[:, down : down + side, across : across + side] = signs * _bump(side, rng)
    return np.clip(x + epsilon * change / _norm(change), 0.0, 1.0)


def _move_l2(best: FloatArray, x: FloatArray, epsilon: float, side: int, rng: np.random.Generator) -> FloatArray:
    """Algorithm 3: one square gives up its share of the ball, another gets it."""
    change = best - x
    to, fro = _window(x.shape, side, rng), _window(x.shape, side, rng)
    unused = max(0.0, epsilon**2 - float((change**2).sum())) / x.shape[0]
    both = np.zeros(x.shape, dtype=np.bool_)
    both[to] = both[fro] = True
    freed = np.sqrt((np.where(both, change, 0.0) ** 2).sum(axis=(1, 2), keepdims=True) + unused)
    own = change[to].copy()
    new = rng.choice((-1.0, 1.0), (x.shape[0], 1, 1)) * _unit(_bump(side, rng)[np.newaxis]) + _unit(own)
    change[fro] = 0.0
    change[to] = _unit(new) * freed
    length = _norm(change)
    return np.clip(x + change * min(1.0, epsilon / length), 0.0, 1.0)


def _bump(side: int, rng: np.random.Generator) -> FloatArray:
    """Two hills of opposite sign beside each other, or one above the other; equation 2."""
    half = side // 2
    found = np.concatenate([_hill(side, half), -_hill(side, side - half)], axis=1) if half else np.ones((side, side))
    return found.T if rng.random() < 0.5 else found


def _hill(height: int, width: int) -> FloatArray:
    """Falls from the middle in rings: the sum over k = 0 to M of 1 / (n + 1 - k)^2, where the ring M of a pixel is counted from outside."""
    n = height // 2
    down = np.abs(np.arange(height) - n)[:, np.newaxis]
    across = np.abs(np.arange(width) - width // 2)[np.newaxis]
    sums = np.cumsum(1.0 / (n + 1 - np.arange(n + 1)) ** 2)
    found: FloatArray = sums[np.clip(n - np.maximum(down, across), 0, n)]
    return found


def _unit(part: FloatArray) -> FloatArray:
    """Each channel scaled to length 1; nothing stays nothing."""
    length = np.sqrt((part**2).sum(axis=(1, 2), keepdims=True))
    found: FloatArray = part / np.where(length > 0, length, 1.0)
    return found


def _norm(x: FloatArray) -> float:
    return max(float(np.sqrt((x**2).sum())), _SMALLEST)
