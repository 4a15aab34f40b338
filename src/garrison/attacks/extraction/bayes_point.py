"""The plane between two classes that a few answered points leave possible: its mean and how sure each part of it is.

Minka, "A family of algorithms for approximate Bayesian inference" (2001), chapter 5: the Bayes point machine by expectation
propagation. Every answer cuts the possible planes in two; what is left is described by a normal distribution over (w, b). The plane
that cuts it in its middle tells the most, so with the best questions the doubt halves with each.

Invariant: no randomness but in `question`; a point and its class are never forgotten. An answer is held to be wrong once in
1 / `FLIPS` times, so that a single contradiction does not empty the set of planes.
"""

from __future__ import annotations

import math

import numpy as np

from garrison.types import FloatArray

FLIPS = 1e-8
_CANDIDATES = 64
_HALVINGS = 50
_SMALLEST = 1e-12


class BayesPoint:
    """A normal distribution over the planes w z + b = 0 that explain what was answered.

    Attributes:
        mean: (features + 1,), w and b.
        spread: (features + 1, features + 1), their covariance.
    """

    def __init__(self, features: int) -> None:
        prior = np.ones(features + 1)
        prior[-1] = max(1, features)  # the plane may pass anywhere
        self.mean: FloatArray = np.zeros(features + 1)
        self.spread: FloatArray = np.diag(prior)
        self._prior = np.diag(1.0 / prior)
        self._z = np.empty((0, features + 1))
        self._sides = np.empty(0)
        self._precision = np.empty(0)  # of each answer's own factor
        self._shift = np.empty(0)

    def side(self, points: FloatArray) -> FloatArray:
        """How far points (n, features) lie on the positive side, in no unit."""
        found: FloatArray = points @ self.mean[:-1] + self.mean[-1]
        return found

    def learn(self, point: FloatArray, side: float) -> None:
        """Take in one answer: the point lies on the positive (1) or negative (-1) side."""
        z = np.append(point, 1.0)
        v = self.spread @ z
        variance = max(float(z @ v), _SMALLEST)
        middle = float(self.mean @ z)
        pull, shrink = _moved(np.array([side * middle / math.sqrt(variance)]))
        self.mean = self.mean + side * pull[0] * v / math.sqrt(variance)
        self.spread = self.spread - shrink[0] * np.outer(v, v) / variance
        precision, shift = _factor(np.array([middle]), np.array([variance]), np.array([side]))
        self._z = np.vstack([self._z, z])
        self._sides = np.append(self._sides, side)
        self._precision, self._shift = np.append(self._precision, precision), np.append(self._shift, shift)

    @property
    def one_side(self) -> float:
        """The side on which all answered points lie; 0 where there are none, or points on both."""
        return float(self._sides[0]) if len(self._sides) and (self._sides == self._sides[0]).all() else 0.0

    def settle(self, passes: int) -> None:
        """Go over all answers again, so that the order in which they came matters no more."""
        if not len(self._z):
            return
        for _ in range(passes):
            self._refresh()
            variance = np.einsum("ij,jk,ik->i", self._z, self.spread, self._z)
            own = 1.0 / np.maximum(variance, _SMALLEST) - self._precision
            possible = own > _SMALLEST
            without = 1.0 / np.where(possible, own, 1.0)
            middle = without * (self._z @ self.mean / np.maximum(variance, _SMALLEST) - self._shift)
            precision, shift = _factor(middle, without, self._sides)
            # Half steps: all factors move at once.
            self._precision = np.where(possible, 0.5 * (self._precision + precision), self._precision)
            self._shift = np.where(possible, 0.5 * (self._shift + shift), self._shift)
        self._refresh()

    def _refresh(self) -> None:
        spread = np.linalg.inv(self._prior + (self._z.T * self._precision) @ self._z)
        self.spread = 0.5 * (spread + spread.T)
        self.mean = self.spread @ (self._z.T @ self._shift)

    def question(self, rng: np.random.Generator, starts: FloatArray) -> FloatArray:
        """The point, of some candidates on the middle plane, whose answer takes away the most doubt; shape (features,).

        Args:
            rng: draws the candidates.
            starts: (n, features), points from which further candidates are moved to the plane.
        """
        features = len(self.mean) - 1
        drawn = rng.uniform(-1.0, 1.0, (_CANDIDATES // 2, features))
        drawn[::2] = np.sign(drawn[::2])
        towards = np.sign((rng.normal(size=(_CANDIDATES // 2, features + 1)) @ self._root().T)[:, :-1])
        drawn = np.concatenate([drawn, towards * rng.uniform(0.3, 1.0, towards.shape), starts])
        z = np.column_stack([self._on_plane(drawn), np.ones(len(drawn))])
        moved = z @ self.spread
        variance = np.maximum((moved * z).sum(axis=1), _SMALLEST)
        gain = (moved**2).sum(axis=1) / variance * np.exp(-0.5 * (z @ self.mean) ** 2 / variance)
        best: FloatArray = z[int(gain.argmax()), :-1]
        return best

    def far_corner(self, rng: np.random.Generator, side: float) -> FloatArray:
        """The corner of the box that lies furthest from a side, by one of the planes that are still possible; shape (features,)."""
        plane = self.mean + self._root() @ rng.normal(size=len(self.mean))
        found: FloatArray = -side * np.where(plane[:-1] >= 0, 1.0, -1.0)
        return found

    def _root(self) -> FloatArray:
        """A square root of the covariance."""
        size = len(self.mean)
        found: FloatArray = np.linalg.cholesky(self.spread + 1e-9 * np.trace(self.spread) / size * np.eye(size))
        return found

    def _on_plane(self, points: FloatArray) -> FloatArray:
        """Points moved along w, within the box, to the middle plane, or as near to it as the box lets them."""
        w = self.mean[:-1]
        if not np.abs(w).max() > 0:
            return points
        reach = 4.0 / np.abs(w[w != 0]).min()
        low, high = np.full(len(points), -reach), np.full(len(points), reach)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = self.side(np.clip(points + middle[:, np.newaxis] * w, -1.0, 1.0)) > 0
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        found: FloatArray = np.clip(points + high[:, np.newaxis] * w, -1.0, 1.0)
        return found


def _moved(a: FloatArray) -> tuple[FloatArray, FloatArray]:
    """How far an answer moves the mean, and how much it shrinks the variance, in deviations; `a` is how expected it was."""
    with_flips = FLIPS + (1 - 2 * FLIPS) * 0.5 * _erfc(-a / math.sqrt(2))
    pull = (1 - 2 * FLIPS) * np.exp(-0.5 * a * a) / math.sqrt(2 * math.pi) / with_flips
    return pull, np.clip(pull * (pull + a), _SMALLEST, 1 - 1e-9)


def _factor(middle: FloatArray, variance: FloatArray, sides: FloatArray) -> tuple[FloatArray, FloatArray]:
    """An answer's own factor, precision and shift, from the mean and variance of z (w, b) without it."""
    deviation = np.sqrt(variance)
    pull, shrink = _moved(sides * middle / deviation)
    precision = shrink / (variance * (1 - shrink))
    return precision, precision * (middle + sides * pull * deviation / shrink)


def _erfc(a: FloatArray) -> FloatArray:
    return np.array([math.erfc(value) for value in a])
