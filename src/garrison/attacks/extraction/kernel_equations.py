"""Kernel equations: the representers of a kernel logistic regression, which are rows that it was trained on.

Tramer et al., "Stealing Machine Learning Models via Prediction APIs" (USENIX Security 2016), section 4.1.3. A kernel logistic regression
says softmax of sum_r a_r k(x, x_r) + b, with representers x_r from its training data. Its log-probabilities minus their mean are linear
in a and b, so an attacker searches the x_r alone (see `garrison.attacks.extraction.separable`). Whoever solves these equations holds
the model and the training rows inside it.

Invariant: the kernel's family and the number of representers are the attacker's guess, the rest comes from the answers. Where answers are
rounded or misinformed the search ends at a fit, not at the representers. Not covered: sparse or categorical features, other kernels.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from garrison.attacks.base import Attack, Goal
from garrison.attacks.checks import at_least, positive
from garrison.attacks.exam import Loot, Picture
from garrison.attacks.extraction.equations import (
    SOFT_NEEDED,
    Observed,
    Questions,
    ask_rows,
    clone_of,
    constant,
    flat,
    observe,
)
from garrison.attacks.extraction.separable import Columns, Fit, Kernel, polynomial, rbf, search, values
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts
from garrison.types import Array, FloatArray

MOST_ROWS = 4000
"""Rows that the search looks at; more of them cost time and change nothing where answers are exact."""
MOST_COORDINATES = 4000
"""Unknown coordinates of representers that are searched; the step's matrix has that many rows."""
_FIRST_STEPS = 6
_WIDTHS = (0.3, 1.0, 3.0)
_SHOWN = 20
_SOLVED = 1e-6
"""Error, in deviations of the answers, below which no further start is tried."""


class KernelEquations(Attack, frozen=True):
    """Search the representers of a kernel model.

    Attributes:
        steps: most steps of a search.
        kernel: "rbf", exp(-gamma |x - x_r|^2), or "poly", (gamma x.x_r + coef0)^degree.
        representers: how many the model is taken to have; fewer are searched where they would have more than `MOST_COORDINATES`.
        gamma: of the kernel; 0 where the attacker does not know it. A polynomial's is then put into the representers.
        degree, coef0: of a polynomial kernel.
        restarts: most starts of the search, which ends at the first that meets the answers; else the best is taken.
        side: flat rows are square pictures of this height; 0 where they are not.
        questions: "uniform", "surrogate" or "mixed", three valid rows to a uniform one.
    """

    name: ClassVar[str] = "kernel-equations"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    steps: int = 60
    kernel: Kernel = "rbf"
    representers: int = 20
    gamma: float = 0.0
    degree: int = 3
    coef0: float = 1.0
    restarts: int = 4
    side: int = 0
    questions: Questions = "uniform"

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "representers", "degree", "restarts")
        at_least(self, 0, "side")
        positive(self, "gamma", zero=True)
        if not math.isfinite(self.coef0):
            raise ValueError(f"coef0 must be finite, found {self.coef0}")

    def obstacle(self, facts: OracleFacts) -> str:
        if facts.dtype.kind != "f":
            return "representers are searched by their slopes, which needs real-valued features"
        return "" if facts.soft or facts.scores or facts.regression else SOFT_NEEDED

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        facts = oracle.facts
        found = observe(oracle, ask_rows(self.questions, rng, knowledge, facts, oracle.remaining))
        if found is None:
            return Loot(constant(facts))
        use = np.flatnonzero(found.exact) if found.exact.any() else np.arange(len(found.x))
        varying = found.x.std(axis=0) > 0
        x, z = found.x[use[:MOST_ROWS]][:, varying], found.z[use[:MOST_ROWS]]
        columns: Columns = rbf if self.kernel == "rbf" else polynomial(self.degree, self.coef0)
        starts = flat(knowledge.surrogate)[:, varying]
        best = self._fit(columns, x, z, starts, rng)
        for _ in range(self.restarts - 1):
            if _share(best, z) < _SOLVED:
                break
            best = min(best, self._fit(columns, x, z, starts, rng), key=lambda fit: fit.loss)
        return Loot(
            clone_of(lambda rows: values(columns, best, rows[:, varying]), soft=facts.soft),
            told={"representers": float(len(best.centres)), "gamma": best.gamma, "unexplained": _share(best, z)},
            pictures=self._pictures(_whole(best.centres, varying, found), facts),
        )

    def _fit(self, columns: Columns, x: FloatArray, z: FloatArray, starts: FloatArray, rng: np.random.Generator) -> Fit:
        """The best fit from a random start: surrogate rows where there are any, else rows that were asked."""
        count = max(1, min(self.representers, len(x) - 2, MOST_COORDINATES // max(1, x.shape[1])))
        pool = starts if len(starts) >= count else x
        centres = pool[rng.permutation(len(pool))[:count]]
        if self.gamma or self.kernel == "poly":
            return search(columns, x, z, centres, self.gamma or 1.0 / x.shape[1], free=False, steps=self.steps)
        usual = 1.0 / (x.shape[1] * max(float(pool.var()), 1e-12))
        first = [
            search(columns, x, z, centres, usual * width, free=True, steps=min(self.steps, _FIRST_STEPS))
            for width in _WIDTHS
        ]
        best = min(first, key=lambda fit: fit.loss)
        return search(columns, x, z, best.centres, best.gamma, free=True, steps=self.steps)

    def _pictures(self, representers: FloatArray, facts: OracleFacts) -> tuple[Picture, ...]:
        shape = facts.shape if len(facts.shape) == 3 else (1, self.side, self.side)  # channels, height, width
        if math.prod(shape) != representers.shape[1] or shape[0] not in {1, 3} or self.kernel != "rbf":
            return ()
        # The usual lowest value: a service may state another one for a pixel that never varies.
        low, high = float(np.median(facts.low)), float(np.max(facts.high))
        span = high - low if math.isfinite(high - low) and high > low else 1.0
        images = np.clip((representers - (low if math.isfinite(low) else 0.0)) / span, 0.0, 1.0)[:_SHOWN]
        names = tuple(f"representer {i + 1}" for i in range(len(images)))
        caption = "Representers of the kernel model, solved from its answers: rows that it was trained on."
        return (Picture(caption, names, tuple(image.reshape(shape) for image in images)),)


def _whole(centres: FloatArray, varying: Array, found: Observed) -> FloatArray:
    """Representers over all features; what never varied has the value that it always had."""
    whole = np.repeat(found.x[:1], len(centres), axis=0)
    whole[:, varying] = centres
    return whole


def _share(fit: Fit, z: FloatArray) -> float:
    """Root mean squared error on the answers, in deviations of them."""
    return math.sqrt(fit.loss) / (float(z.std()) or 1.0)
