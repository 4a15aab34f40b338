"""Randomized smoothing: the class that noisy copies of an input vote for, which no small change can turn (Cohen, Rosenfeld and Kolter, ICML 2019; OWASP ML01).

    g(x) = the class that f(x + e) names most often, e normal with deviation sigma
    radius = sigma * Phi^-1(p)      p a lower confidence limit of that class's share, above 1/2

Within `radius` of x, in the L2 norm, g names the same class; that holds for each input with probability 1 - alpha over the noise. The first copies choose the
class, the others vote on it (algorithm CERTIFY). Noisy values are cut to the range before f sees them, which is part of f for this matter.

The noise of an input follows from the owner's key and the input's bytes: equal input, equal answer, so nothing averages it away. The guarantee is then over the
key: an attacker who finds an input with unlucky noise may keep it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import ClassVar

import numpy as np

from garrison.confidence import lower_limit
from garrison.errors import GuardError
from garrison.guard.base import Marks as RowMarks
from garrison.guard.base import Noise, RowDefense, Verdict, View, codes_of
from garrison.guard.defenses.release import RADIUS
from garrison.types import Array, FloatArray, ModelFacts, Phase, Task

MOST_COPIES = 2_000


class RandomizedSmoothing(RowDefense, frozen=True):
    """Answer with the shares of votes of noisy copies; abstain ("uncertain", equal probabilities) where the vote is too close.

    Each input costs `choosing + copies` runs of the model. A model that was not trained with such noise loses accuracy by it.

    Does not stop: changes beyond the radius, other norms than L2 but for what they imply.

    Attributes:
        sigma: deviation of the noise, in shares of each feature's range.
        copies: noisy copies that vote.
        choosing: noisy copies that choose the class.
        alpha: chance that the radius of an input does not hold.
        tell: the radius is released beside the answer.
    """

    name: ClassVar[str] = "randomized-smoothing"
    phase: ClassVar[Phase] = Phase.ANSWER
    gives: ClassVar[frozenset[str]] = frozenset({RADIUS})
    in_graph: ClassVar[bool] = False
    needs_key: ClassVar[bool] = True

    sigma: float = 0.25
    copies: int = 100
    choosing: int = 20
    alpha: float = 0.001
    tell: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf or not 0 < self.alpha < 0.5:
            raise ValueError("randomized-smoothing: sigma must be above 0 and finite, alpha between 0 and 1/2")
        if min(self.copies, self.choosing) < 1 or self.copies + self.choosing > MOST_COPIES:
            raise ValueError(
                f"randomized-smoothing: copies and choosing must be at least 1, and {MOST_COPIES} together at most"
            )
        if not limits(self.copies, self.alpha)[-1] > 0.5:
            raise ValueError(f"randomized-smoothing: with {self.copies} copies no vote is ever sure enough; use more")

    def check(self, facts: ModelFacts) -> None:
        if facts.task is not Task.CLASSIFICATION:
            raise GuardError(f"{self.name} lets copies vote on classes; this model answers {facts.task.value}")
        for spec in facts.inputs:
            if spec.dtype.kind != "f" or not np.isfinite(spec.low).all() or not np.isfinite(spec.high).all():
                raise GuardError(
                    f"{self.name} adds noise to real numbers with a stated range; {spec.name!r} is {spec.dtype}"
                )

    def noise_drawer(self, facts: ModelFacts) -> Callable[[np.random.Generator, int], FloatArray]:  # noqa: ARG002
        return lambda rng, rows: np.zeros((rows, 1), dtype=np.float32)  # noqa: ARG005  the noise is drawn for each input

    def __call__(self, view: View) -> Verdict:
        raw = view.raw
        if raw is None or raw.again is None or view.noise is None:
            raise GuardError(f"{self.name} runs after the model, can run it again, and needs the owner's key")
        rows = view.batch.rows
        values, radius = np.empty_like(raw.values), np.zeros(rows)
        for row, noise in enumerate(view.noise(slice(0, rows))):
            # One run a row, always of the same size: the batch that it came in decides nothing.
            named = raw.again(self._noisy(view, row, noise)).argmax(axis=1)
            values[row], radius[row] = self._counted(named, values.shape[1])
        unsure = radius <= 0
        values[unsure] = 1.0 / values.shape[1]
        every = np.ones(rows, dtype=np.bool_)
        return Verdict(codes_of(rows, RowMarks(replace=every)), values, unsure, {RADIUS: radius})

    def _noisy(self, view: View, row: int, noise: Noise) -> dict[str, Array]:
        """Noisy copies of one row, by the names of the model's inputs."""
        rng = np.random.Generator(np.random.PCG64([*noise.picks, int(noise.uniform * 2.0**63)]))
        copies, found = self.choosing + self.copies, {}
        for spec in view.facts.inputs:
            x = view.batch.inputs[spec.name][row]
            low, high = spec.low.reshape(spec.shape), spec.high.reshape(spec.shape)
            drawn = rng.standard_normal((copies, *spec.shape), dtype=np.float32)
            found[spec.name] = np.clip(x + self.sigma * (high - low) * drawn, low, high).astype(spec.dtype)
        return found

    def _counted(self, named: Array, classes: int) -> tuple[FloatArray, float]:
        """The shares of votes, and the radius: 0 where it cannot be told which class wins."""
        chosen = int(np.bincount(named[: self.choosing], minlength=classes).argmax())
        votes = np.bincount(named[self.choosing :], minlength=classes)
        sure = limits(self.copies, self.alpha)[int(votes[chosen])]
        radius = self.sigma * NormalDist().inv_cdf(sure) if sure > 0.5 else 0.0
        return votes / self.copies, radius


@lru_cache(maxsize=16)
def limits(copies: int, alpha: float) -> tuple[float, ...]:
    """By the number of votes, 0 to `copies`, the lower confidence limit of a class's share (Clopper and Pearson 1934), one-sided, 1 - alpha."""
    return tuple(lower_limit(votes, copies, 1 - alpha) for votes in range(copies + 1))
