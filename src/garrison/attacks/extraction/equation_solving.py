"""Equation solving: the parameters of a linear model from about as many questions as it has features.

Tramer et al., "Stealing Machine Learning Models via Prediction APIs" (USENIX Security 2016), section 4.1. Three families:

    values         a linear support vector machine's scores and a linear regressor's values are linear in x as they are
    softmax        log p_k(x) - mean_j log p_j(x) is linear in x, so d + 1 questions and one least squares are exact
                   (binary logistic regression is the case of two classes)
    one-vs-rest    p_k(x) = s(a_k(x)) / sum_j s(a_j(x)) with s the logistic function and a_k linear: solved by descent

Answers that were rounded, cut or mixed make the equations inexact; the least squares is then only the start of a descent of the
cross-entropy, which is convex for softmax: damped scoring (Fisher; Levenberg and Marquardt), for many parameters L-BFGS. Where most
answers are honest and some are misinformed, least absolute deviations finds the honest ones first.

Invariant: the answers alone decide between the families; nothing is read of the model. For a model of no such family the loot is
the best linear one, and its fidelity says how little that is. Not covered: answers without all probabilities, kernels, networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from garrison.attacks.base import Attack, Goal
from garrison.attacks.checks import at_least
from garrison.attacks.exam import Clone
from garrison.attacks.extraction.damped import damped_step
from garrison.attacks.extraction.equations import (
    SLICE,
    SOFT_NEEDED,
    Basis,
    Observed,
    ask_rows,
    clone_of,
    constant,
    observe,
)
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts
from garrison.errors import MissingExtraError
from garrison.types import Array, BoolArray, FloatArray

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

EXACT = 1e-5
"""Mean total variation on the answered rows below which the equations are taken as solved: single precision's rounding."""
MOST_FEATURES = 4200
"""A least squares over more of them takes minutes and gigabytes."""
MOST_SCORED = 3000
"""Most parameters for damped scoring, whose matrix has that many rows."""
_MOST_CHANGE = 1e-12
_MOST_DAMPING = 1e12
_HONEST = 1e-4
"""A row whose log-probabilities are met within this is taken as honest."""
_REWEIGHTED = 60
_FIRST_STEPS = 20
"""Steps of a descent after which the family that explains less is given up."""
_LEAST_GAIN = 1e-4
"""Share of the loss that a step must gain, above the losses that are rounding."""
_ROUNDING_LOSS = 1e-9

Link = Callable[[torch.Tensor], torch.Tensor]
"""From linear values (rows, classes) to log-probabilities."""


class EquationSolving(Attack, frozen=True):
    """Solve for the parameters of a linear model: logistic regression, softmax or one-vs-rest, scores, or a regressor.

    Attributes:
        questions: "uniform" asks points drawn evenly from the range of each feature, which tell most and look like nothing
            that an honest user asks; "surrogate" asks surrogate rows. Where a range is not stated, surrogate rows are asked.
        steps: most steps of the descent where the equations are not exact.
    """

    name: ClassVar[str] = "equation-solving"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    questions: Literal["uniform", "surrogate"] = "uniform"
    steps: int = 500

    def __post_init__(self) -> None:
        at_least(self, 1, "steps")

    def obstacle(self, facts: OracleFacts) -> str:
        features = math.prod(facts.shape)
        if features > MOST_FEATURES:
            return f"it solves for at most {MOST_FEATURES:,} features, and there are {features:,}"
        return "" if facts.soft or facts.scores or facts.regression else SOFT_NEEDED

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone:
        facts = oracle.facts
        found = observe(oracle, ask_rows(self.questions, rng, knowledge, facts, oracle.remaining))
        if found is None:
            return constant(facts)
        basis = Basis.over(found.x)
        if found.p is None:
            weights = solve_values(basis.design(found.x), found)
            return clone_of(lambda x: basis.design(x) @ weights, soft=False)
        weights, family = solve_probabilities(basis.design(found.x), found, found.p, self.steps)
        return lambda rows: _answer(basis, weights, family.link, rows)


@dataclass(frozen=True, slots=True)
class Family:
    """How probabilities come from linear values.

    Attributes:
        link: to log-probabilities.
        slope: with log p_k = g(a_k) - log sum_j exp g(a_j), the derivative of g.
    """

    link: Link
    slope: Callable[[FloatArray], FloatArray]


def log_softmax(a: torch.Tensor) -> torch.Tensor:
    return functional.log_softmax(a, dim=1)


def log_one_vs_rest(a: torch.Tensor) -> torch.Tensor:
    """Each class's own logistic function, brought to sum to one."""
    each = functional.logsigmoid(a)
    return each - torch.logsumexp(each, dim=1, keepdim=True)


SOFTMAX = Family(log_softmax, np.ones_like)
ONE_VS_REST = Family(log_one_vs_rest, lambda a: torch.sigmoid(-torch.from_numpy(a)).numpy())


def solve_values(design: FloatArray, found: Observed) -> FloatArray:
    """Weights (features + 1, outputs) of values that are linear."""
    weights: FloatArray = np.linalg.lstsq(design, found.z, rcond=None)[0]
    return weights


def solve_probabilities(design: FloatArray, found: Observed, p: FloatArray, steps: int) -> tuple[FloatArray, Family]:
    """The parameters (features + 1, classes) and the family that explain the answers p best."""
    p = p / p.sum(axis=1, keepdims=True)
    exact = found.exact if found.exact.sum() >= design.shape[1] else np.ones_like(found.exact)
    start = np.linalg.lstsq(design[exact], found.z[exact], rcond=None)[0]
    if unexplained(start, SOFTMAX, design, p) > EXACT and found.exact.all():
        honest = honest_rows(design, found.z)
        if honest is not None:
            start = np.linalg.lstsq(design[honest], found.z[honest], rcond=None)[0]
            return start, SOFTMAX
    log_p = np.log(p)
    other = np.linalg.lstsq(design, log_p - np.log1p(-p.clip(max=1 - 1e-9)), rcond=None)[0]
    candidates = []
    for weights, family in ((start, SOFTMAX), (other, ONE_VS_REST)):
        solution = weights
        if unexplained(solution, family, design, p) > EXACT:
            solution = descend(solution, family, design, p, min(steps, _FIRST_STEPS))
        candidates.append((unexplained(solution, family, design, p), solution, family))
        if candidates[-1][0] <= EXACT:
            break
    off, solution, family = min(candidates, key=lambda candidate: candidate[0])
    if off > EXACT and steps > _FIRST_STEPS:
        solution = descend(solution, family, design, p, steps - _FIRST_STEPS)
    return solution, family


def honest_rows(design: FloatArray, z: FloatArray) -> BoolArray | None:
    """Rows that one linear model explains to rounding; None where they are no majority beyond what any fit explains.

    Least absolute deviations by reweighted least squares (Candes, Wakin and Boyd 2008), which is exact while gross errors are few.
    """
    weights: FloatArray = np.ones((len(design), 1))
    solution: FloatArray = np.zeros((design.shape[1], z.shape[1]))
    for step in range(_REWEIGHTED):
        solution = np.linalg.lstsq(design * weights, z * weights, rcond=None)[0]
        away = np.linalg.norm(z - design @ solution, axis=1, keepdims=True)
        weights = 1.0 / np.sqrt(away + 10.0 ** (-1 - 6 * step / _REWEIGHTED))
    honest: BoolArray = np.abs(z - design @ solution).max(axis=1) < _HONEST
    return honest if honest.sum() >= max(1.5 * design.shape[1], 0.3 * len(design)) else None


def unexplained(weights: FloatArray, family: Family, design: FloatArray, p: FloatArray) -> float:
    """Mean total variation between the answers and what the parameters say, in [0, 1]."""
    said = torch.exp(family.link(torch.from_numpy(design @ weights))).numpy()
    return float(0.5 * np.abs(said - p).sum(axis=1).mean())


def descend(weights: FloatArray, family: Family, design: FloatArray, p: FloatArray, steps: int) -> FloatArray:
    """Parameters that lower the cross-entropy against the answers; no randomness."""
    road = score_steps if weights.size <= MOST_SCORED else quasi_newton
    result = road(weights, family, design, p, steps)
    return result if np.isfinite(result).all() else weights


def score_steps(weights: FloatArray, family: Family, design: FloatArray, p: FloatArray, steps: int) -> FloatArray:
    """Damped Fisher scoring: the information matrix in the place of the Hessian, damped while a step does not lower the loss."""
    damping = 1e-3
    said, slope, loss = _state(weights, family, design, p)
    for _ in range(steps):
        gradient = design.T @ ((p - said) * slope)
        information = _information(design, said, slope)
        diagonal = np.diag(information) + 1e-12 * np.diag(information).max()
        while damping < _MOST_DAMPING:
            step = damped_step(information, gradient.T.reshape(-1), diagonal, damping)
            if step is None:
                damping *= 10
                continue
            tried = weights + step.reshape(weights.shape[1], -1).T
            state = _state(tried, family, design, p)
            if state[2] < loss or (state[2] <= loss + 1e-15 and np.abs(step).max() > _MOST_CHANGE):
                break
            damping *= 10
        else:
            return weights
        little = loss > _ROUNDING_LOSS and loss - state[2] < _LEAST_GAIN * loss
        done = little or np.abs(tried - weights).max() <= _MOST_CHANGE * max(1.0, np.abs(weights).max())
        weights, (said, slope, loss), damping = tried, state, max(damping / 10, 1e-15)
        if done:
            break
    return weights


def _state(
    weights: FloatArray, family: Family, design: FloatArray, p: FloatArray
) -> tuple[FloatArray, FloatArray, float]:
    """What the parameters say, the slope of the link there, and the mean divergence from the answers."""
    a = design @ weights
    log_said = family.link(torch.from_numpy(a)).numpy()
    loss = float((p * (np.log(p) - log_said)).sum(axis=1).mean())
    return np.exp(log_said), family.slope(a), loss if math.isfinite(loss) else math.inf


def _information(design: FloatArray, said: FloatArray, slope: FloatArray) -> FloatArray:
    """The Fisher information, shape (classes x features, the same), class by class."""
    classes, features = said.shape[1], design.shape[1]
    found = np.empty((classes, features, classes, features))
    for j in range(classes):
        for k in range(j, classes):
            weight = ((said[:, j] if j == k else 0.0) - said[:, j] * said[:, k]) * slope[:, j] * slope[:, k]
            found[j, :, k] = design.T @ (design * weight[:, np.newaxis])
            found[k, :, j] = found[j, :, k].T
    return found.reshape(classes * features, classes * features)


def quasi_newton(weights: FloatArray, family: Family, design: FloatArray, p: FloatArray, steps: int) -> FloatArray:
    """L-BFGS (Liu and Nocedal 1989)."""
    x, goal = torch.from_numpy(design), torch.from_numpy(p)
    with torch.inference_mode(mode=False):
        found = torch.from_numpy(weights.copy()).requires_grad_()
        optimiser = torch.optim.LBFGS(
            [found], max_iter=steps, history_size=20, line_search_fn="strong_wolfe", tolerance_change=_MOST_CHANGE
        )

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            value = -(goal * family.link(x @ found)).sum(dim=1).mean()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimiser.step(loss)  # type: ignore[no-untyped-call]
    result: FloatArray = found.detach().numpy()
    return result


def _answer(basis: Basis, weights: FloatArray, link: Link, rows: Array) -> FloatArray:
    parts = [basis.design(rows[i : i + SLICE]) @ weights for i in range(0, len(rows), SLICE)]
    found: FloatArray = torch.exp(link(torch.from_numpy(np.concatenate(parts)))).numpy()
    return found
