"""Hyperparameter stealing: the strength of the regulariser that a model was trained with.

Wang and Gong, "Stealing Hyperparameters in Machine Learning" (IEEE S&P 2018). A learner stops where the gradient of
loss + lambda x regulariser vanishes. With b the gradient of the loss and a that of the regulariser, both known to whoever has the
parameters and the training rows, lambda = -(b.a) / (a.a), one least squares. The parameters are stolen first, by equation solving; for a
kernel learner they are the weights of the training rows in sum_i alpha_i k(x, x_i).

Where a hinge or an absolute value has a corner the gradient is any value between its two sides; such rows and weights enter with
unknowns of their own (see `garrison.attacks.extraction.stationarity`).

The loot is also the model itself, from the stolen parameters. Invariant: lambda comes from answers and training rows alone. Not covered: a
learner that stopped far from its minimum, answers that were rounded, losses and regularisers that are not listed in `LEARNERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from garrison.attacks.base import Attack, Goal
from garrison.attacks.exam import Loot
from garrison.attacks.extraction.equations import (
    SOFT_NEEDED,
    Basis,
    Observed,
    Questions,
    ask_rows,
    clone_of,
    constant,
    flat,
    observe,
)
from garrison.attacks.extraction.stationarity import KERNEL_LEARNERS, KERNELS, LEARNERS, Fitted, kernel_matrix
from garrison.attacks.knowledge import Knowledge, Training
from garrison.attacks.oracle import MeteredOracle, OracleFacts
from garrison.types import FloatArray


class HyperparameterStealing(Attack, frozen=True):
    """Steal the parameters, then the strength of the regulariser.

    Needs `Knowledge.training`: the rows, the learner's name (a key of `LEARNERS` or `KERNEL_LEARNERS`) and its public settings.

    Attributes:
        extra: questions beyond one for each unknown parameter, as a share of those; they even out rounding.
        questions: "uniform", "surrogate" or "mixed", three valid rows to a uniform one. For a kernel learner the training rows
            themselves are asked first: no others tell as much of their weights.
    """

    name: ClassVar[str] = "hyperparameter-stealing"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    extra: float = 1.0
    questions: Questions = "uniform"

    def __post_init__(self) -> None:
        if not 0 < self.extra <= 1000:  # a thousand times the unknowns is beyond any service's budget
            raise ValueError("extra must be above 0 and at most 1000")

    def obstacle(self, facts: OracleFacts) -> str:
        return "" if facts.soft or facts.scores or facts.regression else SOFT_NEEDED

    def lacks(self, knowledge: Knowledge) -> str:
        training = knowledge.training
        if training is None:
            return "it needs the rows that the model was trained on ([training])"
        if training.algorithm not in {*LEARNERS, *KERNEL_LEARNERS}:
            known = ", ".join(sorted({*LEARNERS, *KERNEL_LEARNERS}))
            return f"it knows the learners {known}; found {training.algorithm!r}"
        kernel = training.settings.get("kernel", KERNELS[0])
        return "" if kernel in KERNELS else f"it knows the kernels {', '.join(KERNELS)}; found {kernel!r}"

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        facts, training = oracle.facts, knowledge.training
        if training is None:  # `lacks` has said so
            return Loot(constant(facts))
        kernel = training.algorithm in KERNEL_LEARNERS
        rows = flat(training.x)
        unknown = 1 + (len(rows) if kernel else rows.shape[1])
        count = min(oracle.remaining, int(unknown * (1 + self.extra)))
        asked = ask_rows(self.questions, rng, knowledge, facts, count)
        if kernel:
            asked = np.concatenate([training.x.reshape(-1, *facts.shape).astype(facts.dtype), asked])[:count]
        found = observe(oracle, asked)
        if found is None:
            return Loot(constant(facts))
        return _by_kernel(found, training, facts) if kernel else _linear(found, training, facts)


def _linear(found: Observed, training: Training, facts: OracleFacts) -> Loot:
    basis = Basis.over(found.x)
    use = _exact(found)
    weights = basis.plain(np.linalg.lstsq(basis.design(found.x[use]), found.z[use], rcond=None)[0])
    fitted = Fitted(flat(training.x), training.y, weights[:-1], weights[-1], training.settings)
    return _loot(
        lambda x: x @ weights[:-1] + weights[-1], LEARNERS[training.algorithm](_one_margin(fitted, facts)), facts
    )


def _by_kernel(found: Observed, training: Training, facts: OracleFacts) -> Loot:
    rows, settings, use = flat(training.x), training.settings, _exact(found)
    k = kernel_matrix(found.x[use], rows, settings)
    constant_too = bool(settings.get("fit_intercept", True))
    design = np.concatenate([k, np.ones((len(k), 1))], axis=1) if constant_too else k
    solved = np.linalg.lstsq(design, found.z[use], rcond=1e-14)[0]
    alpha, constants = solved[: len(rows)], solved[len(rows)] if constant_too else np.zeros(found.z.shape[1])
    fitted = Fitted(rows, training.y, alpha, constants, settings)
    return _loot(
        lambda x: kernel_matrix(x, rows, settings) @ alpha + constants,
        KERNEL_LEARNERS[training.algorithm](_one_margin(fitted, facts)),
        facts,
    )


def _exact(found: Observed) -> Any:
    """The rows whose equations hold up to rounding, all rows where there are too few."""
    return found.exact if found.exact.mean() > 0.5 else slice(None)


def _one_margin(fitted: Fitted, facts: OracleFacts) -> Fitted:
    """Two classes have one column of weights: the difference of their log-probabilities, or the second's score."""
    if facts.regression or fitted.weights.shape[1] != 2:
        return fitted
    if facts.soft:
        return fitted.column(fitted.weights[:, 1:] - fitted.weights[:, :1], fitted.constants[1:] - fitted.constants[:1])
    return fitted.column(fitted.weights[:, 1:], fitted.constants[1:])


def _loot(values: Callable[[FloatArray], FloatArray], strength: float, facts: OracleFacts) -> Loot:
    told = {"lambda": strength} if np.isfinite(strength) else {}
    return Loot(clone_of(values, soft=facts.soft), told=told, hyperparameters=dict(told))
