"""Boundary walking: follow the border between classes and train a clone on the points on both sides of it.

After Lowd and Meek (KDD 2005) and Tramer et al. (USENIX Security 2016), section 6, whose line searches find single points of the
boundary; here many walkers go on from there. A walker holds two points of different classes close together, found by halving the way
between them. It takes a step to the side with both; where both now have one class it reaches out across, further and further, until the
class changes, and halves that way. Nothing is assumed of the model, so it serves for several classes and for models that are not linear.

Invariant: labels alone are used. Not covered: classes that none of the first questions met.
"""

from __future__ import annotations

from contextlib import suppress
from typing import ClassVar

import numpy as np

from garrison.attacks.checks import at_least, share
from garrison.attacks.exam import Loot
from garrison.attacks.extraction.ground import Ground, Notebook, between_classes
from garrison.attacks.extraction.retraining import LabelOnly
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Labels, MeteredOracle, SpentError
from garrison.types import BoolArray, FloatArray

_REACHES = (1.0, -1.0, 3.0, -3.0, 9.0, -9.0)
"""How far a walker reaches out for the other class, in multiples of its step."""


class BoundaryWalking(LabelOnly, frozen=True):
    """Walk along the boundary, then train a clone on all that was answered.

    Attributes:
        walkers: how many walk at once.
        stride: length of a step, as a share of the box's diagonal.
        halvings: of each way between two classes; the pair that a walker holds is as much closer.
        first: share of the questions that look for classes to start from.
        family, hidden, draws: see `garrison.attacks.extraction.retraining.LabelOnly`.
    """

    name: ClassVar[str] = "boundary-walking"

    walkers: int = 32
    stride: float = 0.1
    halvings: int = 4
    first: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "walkers", "halvings")
        share(self, "first", one=False)
        share(self, "stride")

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        ground = Ground.of(oracle.facts, knowledge)
        notebook = Notebook(oracle, ground)
        notebook.ask_some(self.first_points(ground, knowledge, rng, max(1, round(self.first * oracle.remaining))))
        with suppress(SpentError):  # what was answered by then is trained on
            self._walk(notebook, knowledge, rng)
        notebook.ask_some(self.first_points(ground, knowledge, rng, notebook.remaining))
        family = self.chosen(*notebook.answered(), oracle.facts.classes)
        return self.loot(notebook, self.trained(notebook, family), family)

    def _walk(self, notebook: Notebook, knowledge: Knowledge, rng: np.random.Generator) -> None:
        points, labels = notebook.answered()
        a, b = self._pairs(labels, rng)
        while not len(a):  # one class so far: look on
            count = min(self.walkers, notebook.remaining)
            if not count:
                return
            notebook.ask(self.first_points(notebook.ground, knowledge, rng, count))
            points, labels = notebook.answered()
            a, b = self._pairs(labels, rng)
        own = labels[a]
        near, far, _ = between_classes(notebook, points[a], points[b], own, 3 * self.halvings)
        length = self.stride * 2.0
        while notebook.remaining:
            near, far, own = self._step(notebook, near, far, own, length * rng.normal(size=near.shape))

    def _pairs(
        self, labels: Labels, rng: np.random.Generator
    ) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """Numbers of points of different classes, two for each walker; seldom classes start as many as frequent ones."""
        named = np.unique(labels)
        if len(named) < 2:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        first, second = [], []
        for k in range(self.walkers):
            one, other = rng.choice(named, size=2, replace=False) if k else named[:2]
            first.append(int(rng.choice(np.flatnonzero(labels == one))))
            second.append(int(rng.choice(np.flatnonzero(labels == other))))
        return np.array(first), np.array(second)

    def _step(
        self, notebook: Notebook, near: FloatArray, far: FloatArray, own: Labels, sideways: FloatArray
    ) -> tuple[FloatArray, FloatArray, Labels]:
        """All walkers step to the side; those that find the boundary again stand there, the others stay."""
        length = np.linalg.norm(sideways, axis=1, keepdims=True)
        across = far - near
        across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-12)
        # What goes along the way across is no step to the side.
        flat = sideways - (sideways * across).sum(axis=1, keepdims=True) * across
        moved, labels = notebook.ask(np.clip((near + far) / 2 + flat, -1.0, 1.0))
        beyond, waiting = moved.copy(), np.ones(len(near), dtype=np.bool_)
        towards = np.where(labels == own, 1.0, -1.0)[:, np.newaxis]
        for reach in _REACHES:
            those = np.flatnonzero(waiting)
            if not len(those):
                break
            goal = np.clip(moved[those] + reach * 0.3 * length[those] * towards[those] * across[those], -1.0, 1.0)
            there, named = notebook.ask(goal)
            changed: BoolArray = named != labels[those]
            beyond[those[changed]] = there[changed]
            waiting[those[changed]] = False
        done = np.flatnonzero(~waiting)
        if len(done):
            a, b, _ = between_classes(notebook, moved[done], beyond[done], labels[done], self.halvings)
            near[done], far[done], own[done] = a, b, labels[done]
        return near, far, own
