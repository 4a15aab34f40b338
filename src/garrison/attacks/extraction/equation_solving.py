"""Equation solving: the parameters of a logistic regression from about as many questions as it has features.

Tramer et al., "Stealing Machine Learning Models via Prediction APIs" (USENIX Security 2016), section 4.1. Two families:

    softmax        log p_k(x) - mean_j log p_j(x) is linear in x, so d + 1 questions and one least squares are exact
                   (binary logistic regression is the case of two classes)
    one-vs-rest    p_k(x) = s(a_k(x)) / sum_j s(a_j(x)) with s the logistic function and a_k linear: solved by descent

Answers that were rounded, cut or mixed make the equations inexact; the least squares is then only the start of a descent of the
cross-entropy, which is convex for softmax. Of the two families the one that explains the answers better is handed over.

Invariant: the answers alone decide between the families; nothing is read of the model. For a model of neither family the loot is
the best linear one, and its fidelity says how little that is. Not covered: answers without all probabilities, linear models that
release scores, kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np

from garrison.attacks.base import Attack, Goal
from garrison.attacks.exam import Clone
from garrison.attacks.extraction.knockoff import surrogate_rows
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts
from garrison.errors import MissingExtraError
from garrison.types import Array, FloatArray

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

EXACT = 1e-5
"""Mean total variation on the answered rows below which the equations are taken as solved: single precision's rounding."""
_SMALLEST = 1e-12
_SLICE = 4096
_MOST_CHANGE = 1e-12

Link = Callable[[torch.Tensor], torch.Tensor]
"""From linear values (rows, classes) to log-probabilities."""


class EquationSolving(Attack, frozen=True):
    """Solve for the parameters of a logistic regression, softmax or one-vs-rest.

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
        if self.steps < 1:
            raise ValueError("steps must be at least 1")

    def obstacle(self, facts: OracleFacts) -> str:
        return "" if facts.soft else "equations need probabilities, and the service releases labels alone"

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone:
        facts = oracle.facts
        asked = self._questions(oracle, knowledge, rng)
        answers = oracle.query(asked)
        usable = answers.usable
        if answers.probabilities is None or not usable.any():
            return lambda rows: np.full((len(rows), facts.classes), 1.0 / facts.classes)
        basis = Basis.over(asked[usable])
        p = np.nan_to_num(answers.probabilities[usable].astype(np.float64)).clip(min=0.0)
        p = (p + _SMALLEST) / (p + _SMALLEST).sum(axis=1, keepdims=True)
        weights, link = self._solve(basis.design(asked[usable]), p)
        return lambda rows: _answer(basis, weights, link, rows)

    def _questions(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Array:
        facts = oracle.facts
        stated = np.isfinite(facts.low).all() and np.isfinite(facts.high).all()
        if self.questions == "surrogate" or not stated:
            return surrogate_rows(knowledge, rng, oracle.remaining)
        shape = (oracle.remaining, *facts.shape)
        return uniform_rows(rng, shape, facts)

    def _solve(self, design: FloatArray, p: FloatArray) -> tuple[FloatArray, Link]:
        """The parameters (features + 1, classes) and the family that explain the answers best."""
        z = np.log(p)
        start = np.linalg.lstsq(design, z - z.mean(axis=1, keepdims=True), rcond=None)[0]
        families: tuple[tuple[FloatArray, Link], ...] = (
            (start, log_softmax),
            (np.linalg.lstsq(design, z - np.log1p(-p.clip(max=1 - 1e-9)), rcond=None)[0], log_one_vs_rest),
        )
        best = (math.inf, *families[0])
        for weights, link in families:
            found = weights
            if unexplained(found, link, design, p) > EXACT:
                found = descend(found, link, design, p, self.steps)
            best = min(best, (unexplained(found, link, design, p), found, link), key=lambda candidate: candidate[0])
            if best[0] <= EXACT:
                break
        return best[1], best[2]


class Basis:
    """Features brought to mean 0 and deviation 1, with a constant; what never varied is left out and so gets no weight."""

    def __init__(self, mean: FloatArray, deviation: FloatArray) -> None:
        self._mean = mean
        self._factor = np.where(deviation > 0, 1.0 / np.where(deviation > 0, deviation, 1.0), 0.0)

    @classmethod
    def over(cls, x: Array) -> Basis:
        rows = np.nan_to_num(x.reshape(len(x), -1).astype(np.float64))
        return cls(rows.mean(axis=0), rows.std(axis=0))

    def design(self, x: Array) -> FloatArray:
        """Shape (rows, features + 1)."""
        rows = np.nan_to_num(x.reshape(len(x), -1).astype(np.float64))
        found: FloatArray = np.concatenate([(rows - self._mean) * self._factor, np.ones((len(x), 1))], axis=1)
        return found


def uniform_rows(rng: np.random.Generator, shape: tuple[int, ...], facts: OracleFacts) -> Array:
    """Rows drawn evenly from the stated range of each feature, in the service's own dtype; shape as given."""
    low, high = np.broadcast_to(facts.low, shape), np.broadcast_to(facts.high, shape)
    if facts.dtype.kind in "iub":
        whole: Array = rng.integers(low.astype(np.int64), high.astype(np.int64), endpoint=True).astype(facts.dtype)
        return whole
    # Rounding to a narrower dtype must not leave the range.
    real: Array = np.clip((low + rng.random(shape) * (high - low)).astype(facts.dtype), low, high).astype(facts.dtype)
    return real


def log_softmax(a: torch.Tensor) -> torch.Tensor:
    return functional.log_softmax(a, dim=1)


def log_one_vs_rest(a: torch.Tensor) -> torch.Tensor:
    """Each class's own logistic function, brought to sum to one."""
    each = functional.logsigmoid(a)
    return each - torch.logsumexp(each, dim=1, keepdim=True)


def unexplained(weights: FloatArray, link: Link, design: FloatArray, p: FloatArray) -> float:
    """Mean total variation between the answers and what the parameters say, in [0, 1]."""
    said = torch.exp(link(torch.from_numpy(design @ weights))).numpy()
    return float(0.5 * np.abs(said - p).sum(axis=1).mean())


def descend(weights: FloatArray, link: Link, design: FloatArray, p: FloatArray, steps: int) -> FloatArray:
    """Parameters that lower the cross-entropy against the answers, by L-BFGS (Liu and Nocedal 1989); no randomness."""
    x, goal = torch.from_numpy(design), torch.from_numpy(p)
    found = torch.from_numpy(weights.copy()).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [found], max_iter=steps, history_size=20, line_search_fn="strong_wolfe", tolerance_change=_MOST_CHANGE
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = -(goal * link(x @ found)).sum(dim=1).mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.inference_mode(mode=False):
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    result: FloatArray = found.detach().numpy()
    return result if np.isfinite(result).all() else weights


def _answer(basis: Basis, weights: FloatArray, link: Link, rows: Array) -> FloatArray:
    parts = [basis.design(rows[i : i + _SLICE]) @ weights for i in range(0, len(rows), _SLICE)]
    found: FloatArray = torch.exp(link(torch.from_numpy(np.concatenate(parts)))).numpy()
    return found
