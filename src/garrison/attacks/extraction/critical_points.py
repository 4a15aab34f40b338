"""Critical points: a network with one hidden ReLU layer, equal to the original up to rounding.

Jagielski et al., "High Accuracy and High Fidelity Extraction of Neural Networks" (USENIX Security 2020), section 5; Carlini, Jagielski and
Mironov, "Cryptanalytic Extraction of Neural Network Models" (CRYPTO 2020). Scores, values and log-probabilities minus their mean are
piecewise linear in x:

    z(x) = A x + c + sum_j u_j |n_j . x + b_j|,    n_j of length 1

and each hidden unit bends it along one hyperplane. On a line the bends are critical points. At each, the difference of the slopes on its
two sides is 2 u_j n_j, which gives the unit; what is left is linear, one least squares. ReLU(t) = (t + |t|) / 2, so a unit's sign, which
the papers recover in a step of its own, only moves a linear part between A and the unit, and the sum above needs none.

Invariant: a unit is taken only where the difference of the slopes agrees with the bend that was seen on the line. Not covered: deeper
networks, answers that were rounded (the loot is then the best linear model), units that bend nothing inside the stated range.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from garrison.attacks.base import Attack, Goal
from garrison.attacks.checks import at_least
from garrison.attacks.draws import has_range, within
from garrison.attacks.exam import Loot
from garrison.attacks.extraction.equations import SOFT_NEEDED, clone_of, constant, flat, observed
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts, SpentError
from garrison.types import BoolArray, FloatArray

_TOLERANCE = {False: 1e-11, True: 3e-5}
"""Difference of values, as a share of the largest, that is put down to rounding; in single precision or not."""
_STEP = {False: 1e-4, True: 1e-2}
"""Of a slope along a feature, as a share of its range."""
_APART = 50.0
"""How many such steps before and behind a critical point its slopes are taken."""
_SIDE_STEP = 1e-3
"""Of a slope along a line, as a share of the interval."""
_SHORTEST = 1e-5
_MOST_INTERVALS = 400
_AGREEMENT = 1e-2
_TRIES = 3
_UNEXPLAINED = {False: 1e-6, True: 1e-2}
"""Difference of values, as a share of the largest, from which on a unit must be missing."""
_SPARE_ROWS = 20


class CriticalPoints(Attack, frozen=True):
    """Find the hidden units of a ReLU network one by one.

    Attributes:
        lines: lines in a row on which nothing new bends, after which the search ends; such a line costs about six questions.
        neurons: most hidden units.
    """

    name: ClassVar[str] = "critical-points"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    lines: int = 20
    neurons: int = 64

    def __post_init__(self) -> None:
        at_least(self, 1, "lines", "neurons")

    def obstacle(self, facts: OracleFacts) -> str:
        if facts.dtype.kind != "f":
            return "slopes need real-valued features"
        if not has_range(facts):
            return "points are drawn from the range of the features, and the service states none"
        return "" if facts.soft or facts.scores or facts.regression else SOFT_NEEDED

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:  # noqa: ARG002
        probe = Probe(oracle, rng)
        # Rows from everywhere: they say whether answers are exact, and bear the last least squares.
        probe.ask(probe.draw(min(oracle.remaining, probe.dimensions + 1 + _SPARE_ROWS)))
        if not probe.asked:
            return Loot(constant(oracle.facts))
        model = Model(probe)
        if probe.exact:
            with contextlib.suppress(SpentError):  # what is known by now is the loot
                self._search(model)
        values, left = model.solved()
        told = {"units": float(len(model.units)), "unexplained": left}
        return Loot(clone_of(values, soft=oracle.facts.soft), told=told)

    def _search(self, model: Model) -> None:
        """Lines through the range until nothing new bends, then lines that end at rows which are not explained.

        Raises:
            SpentError: the budget is used up.
        """
        quiet = 0
        while quiet < self.lines and len(model.units) < self.neurons:
            quiet = 0 if model.search_line(self.neurons) else quiet + 1
        for _ in range(self.lines):
            points = model.probe.draw(_SPARE_ROWS)
            values = model.probe.ask(points)[1]
            off = np.nan_to_num(np.abs(model.solved()[0](model.probe.rows(points)) - values).max(axis=1))
            if off.max() <= _UNEXPLAINED[model.probe.single] * model.probe.scale:
                return
            order = np.argsort(off)
            model.search_line(self.neurons, points[order[[0, -1]]])


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """u |n.x + b|, over features brought to [0, 1]."""

    normal: FloatArray
    offset: float
    effect: FloatArray

    def values(self, points: FloatArray) -> FloatArray:
        found: FloatArray = np.abs(points @ self.normal + self.offset)[:, np.newaxis] * self.effect
        return found


class Probe:
    """The service over the features that vary, each brought to [0, 1].

    Attributes:
        dimensions: features that vary.
        exact: whether answers are the model's own up to rounding.
        single: whether they are in single precision.
        scale: the largest value seen.
        asked: pairs of points (n, dimensions) and values (n, outputs) that were answered.
    """

    def __init__(self, oracle: MeteredOracle, rng: np.random.Generator) -> None:
        facts = oracle.facts
        self.low, high = (
            flat(np.broadcast_to(facts.low, (1, *facts.shape)))[0],
            flat(np.broadcast_to(facts.high, (1, *facts.shape)))[0],
        )
        self.varying = high > self.low
        self.span = (high - self.low)[self.varying]
        self.dimensions = int(self.varying.sum())
        self.exact, self.single, self.scale = True, facts.dtype.itemsize < np.dtype(np.float64).itemsize, 1.0
        self.asked: list[tuple[FloatArray, FloatArray]] = []
        self._oracle, self.rng = oracle, rng

    def draw(self, count: int) -> FloatArray:
        found: FloatArray = self.rng.random((count, self.dimensions))
        return found

    def points(self, x: FloatArray) -> FloatArray:
        """Rows (n, features) as points."""
        found: FloatArray = (x[:, self.varying] - self.low[self.varying]) / self.span
        return found

    def rows(self, points: FloatArray) -> FloatArray:
        """Points as rows (n, features)."""
        x = np.repeat(self.low[np.newaxis], len(points), axis=0)
        x[:, self.varying] += points * self.span
        return x

    def ask(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The points as they were asked after rounding, and values, NaN where there was no answer.

        Raises:
            SpentError: the budget does not suffice; nothing was asked.
        """
        if not len(points):
            return points, np.empty((0, self._oracle.facts.classes))
        if len(points) > self._oracle.remaining:
            raise SpentError
        x = self.rows(points)
        rows = within(x.reshape(len(x), *self._oracle.facts.shape), self._oracle.facts)
        real, values = self.points(flat(rows)), np.full((len(x), self._oracle.facts.classes), np.nan)
        answers = self._oracle.query(rows)
        found = observed(rows, answers)
        if found is not None:
            vector = answers.values if answers.probabilities is None else answers.probabilities
            usable = answers.usable if vector is None else answers.usable & np.isfinite(vector).all(axis=1)
            # An answer of zero has no logarithm; small requests cannot tell whether answers are rounded, the first can.
            whole = np.flatnonzero(usable)[found.exact if self.asked else slice(None)]
            values[whole] = found.z[found.exact if self.asked else slice(None)]
            if not self.asked:
                self.exact = bool(found.exact.mean() > 0.5) and bool(usable.mean() > 0.5)
                self.single = self.single or found.single
                self.scale = max(float(np.abs(found.z).max()), 1e-12)
            self.asked.append((real[whole], values[whole]))
        return real, values


@dataclass(slots=True)
class Model:
    """What is known of the network."""

    probe: Probe
    units: list[Unit] = field(default_factory=list)

    def search_line(self, most: int, ends: FloatArray | None = None) -> int:
        """Take a line between two points, or draw one, and find the units that bend it; how many were new.

        Raises:
            SpentError: the budget is used up.
        """
        ends = self.probe.draw(2) if ends is None else ends
        way = ends[1] - ends[0]
        before = len(self.units)
        for place, jump in self._bends(ends[0], way):
            unit = self._unit(ends[0] + place * way, way / np.linalg.norm(way), jump / np.linalg.norm(way))
            if unit is not None and len(self.units) < most:
                self.units.append(unit)
        return len(self.units) - before

    def rest(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The points as asked, and what is left of the values without the units that are known."""
        real, values = self.probe.ask(points)
        for unit in self.units:
            values = values - unit.values(real)
        return real, values

    def _bends(self, start: FloatArray, way: FloatArray) -> list[tuple[float, FloatArray]]:
        """Where on start + t way, t in (0, 1), the rest bends, and the change of its slope by t there."""
        tolerance = _TOLERANCE[self.probe.single] * self.probe.scale
        waiting, found, looked = [(0.0, 1.0)], [], 0
        while waiting and looked < _MOST_INTERVALS:
            looked += len(waiting)
            halves: list[tuple[float, float]] = []
            for (low, high), bend in zip(waiting, self._looked_at(start, way, waiting, tolerance), strict=True):
                if bend is None:
                    middle = low + (0.4 + 0.2 * float(self.probe.rng.random())) * (high - low)
                    halves += [(low, middle), (middle, high)] if high - low > _SHORTEST else []
                elif bend[0] >= 0:
                    found.append(bend)
            waiting = halves
        return found

    def _looked_at(
        self, start: FloatArray, way: FloatArray, intervals: list[tuple[float, float]], tolerance: float
    ) -> list[tuple[float, FloatArray] | None]:
        """For each interval its single bend, (-1, 0) where there is none, None where there are several or it is not known."""
        low, high = np.array(intervals).T
        step = _SIDE_STEP * (high - low)
        places = np.stack([low, low + step, high - step, high])
        z = self._on_line(start, way, places.reshape(-1)).reshape(4, len(low), -1)
        left, right = (z[1] - z[0]) / step[:, np.newaxis], (z[3] - z[2]) / step[:, np.newaxis]
        jump, size = right - left, high - low
        gap = (z[3] - z[0]) - left * size[:, np.newaxis]  # equals jump x (high - place) for a single bend
        straight = (np.abs(gap).max(axis=1) <= tolerance * 100) & (
            np.abs(jump).max(axis=1) * size <= 1e2 * tolerance / _SIDE_STEP
        )
        with np.errstate(all="ignore"):
            place = high - (jump * gap).sum(axis=1) / (jump**2).sum(axis=1)
        inside = ~straight & (place > low + step) & (place < high - step)
        single = np.zeros(len(low), dtype=np.bool_)
        if inside.any():
            at = place[inside]
            # At the bend, and between it and each end: two bends can meet at a place where neither is.
            checks = np.stack([at, 0.5 * (low[inside] + at), 0.5 * (at + high[inside])])
            said = self._on_line(start, way, checks.reshape(-1)).reshape(3, len(at), -1)
            from_left = z[0][inside] + left[inside] * (checks[:2] - low[inside])[:, :, np.newaxis]
            from_right = z[3][inside] + right[inside] * (checks[2] - high[inside])[:, np.newaxis]
            off = np.abs(said - np.concatenate([from_left, from_right[np.newaxis]])).max(axis=(0, 2))
            single[inside] = off <= tolerance / _SIDE_STEP
        unknown: BoolArray = np.logical_or.reduce(np.isnan(z), axis=(0, 2))
        nothing = (-1.0, np.zeros(z.shape[2]))
        return [
            nothing if straight[i] or unknown[i] else (float(place[i]), jump[i]) if single[i] else None
            for i in range(len(low))
        ]

    def _on_line(self, start: FloatArray, way: FloatArray, places: FloatArray) -> FloatArray:
        return self.rest(start + places[:, np.newaxis] * way)[1]

    def _unit(self, point: FloatArray, direction: FloatArray, jump: FloatArray) -> Unit | None:
        """The unit that bends the rest at a point of a line, where the slope along the line changes by `jump`.

        None where the slopes before and behind do not agree with that change.
        """
        step = _STEP[self.probe.single]
        for _ in range(_TRIES):
            before = self._slope(point - _APART * step * direction, step)
            behind = self._slope(point + _APART * step * direction, step)
            change = behind[2] - before[2]
            if np.linalg.norm(change @ direction - jump) <= _AGREEMENT * np.linalg.norm(jump):
                break
            step /= 10
        else:
            return None
        normal = np.linalg.svd(change, full_matrices=False)[2][0]
        normal = normal if normal @ direction > 0 else -normal
        effect = 0.5 * change @ normal
        # Behind the bend the rest exceeds what the slopes before it say by 2 u (n.x + b).
        over = behind[1] - before[1] - before[2] @ (behind[0] - before[0])
        place = float(over @ effect) / (2 * float(effect @ effect))
        return Unit(normal, place - float(normal @ behind[0]), effect)

    def _slope(self, point: FloatArray, step: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The point as asked, the rest there, and its slopes, shape (outputs, dimensions)."""
        point = np.clip(point, 0.0, 1.0)
        steps = np.where(point + step <= 1.0, step, -step)
        real, values = self.rest(np.concatenate([point[np.newaxis], point + np.diag(steps)]))
        moved = np.diag(real[1:] - real[0])
        return real[0], values[0], ((values[1:] - values[0]) / moved[:, np.newaxis]).T

    def solved(self) -> tuple[Callable[[FloatArray], FloatArray], float]:
        """The network as a function of rows, and the largest difference to an answer; one least squares over all answers."""
        points = np.concatenate([pair[0] for pair in self.probe.asked])
        values = np.concatenate([pair[1] for pair in self.probe.asked])
        design = self._design(points)
        weights = np.linalg.lstsq(design, values, rcond=None)[0]
        left = float(np.abs(design @ weights - values).max(initial=0.0))
        return lambda x: self._design(self.probe.points(x)) @ weights, left

    def _design(self, points: FloatArray) -> FloatArray:
        bends = [np.abs(points @ unit.normal + unit.offset)[:, np.newaxis] for unit in self.units]
        return np.concatenate([points, np.ones((len(points), 1)), *bends], axis=1)
