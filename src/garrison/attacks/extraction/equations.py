"""What the attacks that solve equations share: which rows to ask, and answers as values that are linear in a model's last layer.

Probabilities of a softmax model say their logits up to a constant a row: log p_k - mean_j log p_j. Scores and a regressor's answers are
such values as they are. Answers that were rounded say less, and `Observed.exact` tells.

Invariants: rows keep to the stated range and the service's dtype; a row that was refused, or that the service calls uncertain, is left
out; nothing is read of the model but its answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from garrison.attacks.draws import has_range, uniform_rows, within
from garrison.attacks.exam import Clone
from garrison.attacks.extraction.knockoff import surrogate_rows
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, MeteredOracle, OracleFacts
from garrison.types import Array, BoolArray, FloatArray

Questions = Literal["uniform", "surrogate", "mixed"]
"""Points drawn evenly from the range of each feature; surrogate rows; or three valid rows to one such point, see `ask_rows`."""

SOFT_NEEDED = "equations need probabilities, scores or values, and the service releases labels alone"
SLICE = 4096
_MOST_DIGITS = 6
_VALID = 0.75
_SMALLEST = 1e-300


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """Answered rows.

    Attributes:
        x: (rows, features), as they were asked, in double precision.
        z: (rows, outputs), log-probabilities minus their mean, or the values themselves.
        p: (rows, classes), probabilities that sum to one and hold no zero; None where values were answered.
        exact: (rows,), whether `z` is the model's own up to the rounding of its precision.
        single: whether the answers are in single precision.
    """

    x: FloatArray
    z: FloatArray
    p: FloatArray | None
    exact: BoolArray
    single: bool


class Basis:
    """Features brought to mean 0 and deviation 1, with a constant; what never varied is left out and so gets no weight."""

    def __init__(self, mean: FloatArray, deviation: FloatArray) -> None:
        self.mean = mean
        self.factor = np.where(deviation > 0, 1.0 / np.where(deviation > 0, deviation, 1.0), 0.0)

    @classmethod
    def over(cls, x: Array) -> Basis:
        rows = flat(x)
        return cls(rows.mean(axis=0), rows.std(axis=0))

    def design(self, x: Array) -> FloatArray:
        """Shape (rows, features + 1)."""
        found: FloatArray = np.concatenate([(flat(x) - self.mean) * self.factor, np.ones((len(x), 1))], axis=1)
        return found

    def plain(self, weights: FloatArray) -> FloatArray:
        """Weights (features + 1, outputs) over the design as weights over the features themselves, the constant last."""
        own = weights[:-1] * self.factor[:, np.newaxis]
        return np.concatenate([own, weights[-1:] - self.mean[np.newaxis] @ own])


def flat(x: Array) -> FloatArray:
    """Rows as (rows, features) in double precision; a missing value counts as 0."""
    found: FloatArray = np.nan_to_num(x.reshape(len(x), math.prod(x.shape[1:])).astype(np.float64))
    return found


def one_hot_groups(rows: FloatArray) -> list[tuple[int, int]]:
    """Runs of features, first and behind the last, of which in every row exactly one is 1 and all others are 0.

    Args:
        rows: (n, features), surrogate rows; with none there are no runs.
    """
    binary: BoolArray = np.logical_and.reduce((rows == 0) | (rows == 1), axis=0) & (len(rows) > 0)
    found, first = [], 0
    while first < rows.shape[1]:
        total, last = np.zeros(len(rows)), first
        while last < rows.shape[1] and binary[last] and not (total == 1).all() and (total <= 1).all():
            total, last = total + rows[:, last], last + 1
        if last - first > 1 and (total == 1).all():
            found.append((first, last))
            first = last
        else:
            first += 1
    return found


def valid_rows(rng: np.random.Generator, count: int, facts: OracleFacts, surrogate: Array) -> Array:
    """Uniform rows in which features that encode a category name exactly one, as in the surrogate rows."""
    x = flat(uniform_rows(rng, count, facts))
    for first, last in one_hot_groups(flat(surrogate)):
        x[:, first:last] = np.eye(last - first)[rng.integers(last - first, size=count)]
    return within(x.reshape(count, *facts.shape), facts)


def ask_rows(kind: Questions, rng: np.random.Generator, knowledge: Knowledge, facts: OracleFacts, count: int) -> Array:
    """Rows to ask; surrogate rows, fewer where there are fewer, where a range is not stated."""
    if kind == "surrogate" or not has_range(facts):
        return surrogate_rows(knowledge, rng, count)
    valid = int(_VALID * count) if kind == "mixed" else 0
    even = uniform_rows(rng, count - valid, facts)
    mixed = np.concatenate([valid_rows(rng, valid, facts, knowledge.surrogate), even])
    return mixed[rng.permutation(count)] if valid else even


def observe(oracle: MeteredOracle, rows: Array) -> Observed | None:
    """Ask rows; None where nothing came back that could be used."""
    answers = oracle.query(rows)
    return observed(rows, answers)


def observed(rows: Array, answers: Answers) -> Observed | None:
    """The usable answers to rows; None where there are none."""
    vector = answers.values if answers.probabilities is None else answers.probabilities
    if vector is None:
        return None
    usable = answers.usable & np.isfinite(vector).all(axis=1)
    if not usable.any():
        return None
    x, found = flat(rows[usable]), vector[usable]
    single = found.dtype.itemsize < 8
    values = found.astype(np.float64)
    step = resolution(values)
    if answers.probabilities is None:
        return Observed(x, values, None, np.full(len(x), step == 0), single)
    exact: BoolArray = np.logical_and.reduce(values > 0, axis=1) & (step == 0)
    floor = step / 4 if step else float(values[values > 0].min(initial=1.0)) / 2
    p = np.maximum(values, max(floor, _SMALLEST))
    p = p / p.sum(axis=1, keepdims=True) if not exact.all() else p
    z = np.log(p)
    return Observed(x, z - z.mean(axis=1, keepdims=True), p, exact, single)


def resolution(values: FloatArray) -> float:
    """The step of answers that were rounded to at most 6 decimals; 0 where they were not, or nothing can be said."""
    if len(np.unique(values)) <= 2:  # 0 and 1 lie on every grid
        return 0.0
    for digits in range(1, _MOST_DIGITS + 1):
        scaled = values * 10.0**digits
        # Single precision keeps a rounded number to about 1e-7 of it.
        if (np.abs(scaled - np.rint(scaled)) <= 2e-7 * np.abs(scaled) + 1e-9).all():
            return float(10.0**-digits)
    return 0.0


def softmax(z: FloatArray) -> FloatArray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    found: FloatArray = e / e.sum(axis=1, keepdims=True)
    return found


def constant(facts: OracleFacts) -> Clone:
    """What an attacker hands over who learnt nothing."""
    value = 0.0 if facts.regression else 1.0 / facts.classes
    return lambda rows: np.full((len(rows), facts.classes), value)


def clone_of(values: Callable[[FloatArray], FloatArray], *, soft: bool) -> Clone:
    """A clone from a function of (rows, features) to logits, or to the values themselves."""

    def answer(rows: Array) -> FloatArray:
        x = flat(rows)
        z = np.concatenate([values(x[i : i + SLICE]) for i in range(0, max(1, len(x)), SLICE)])
        return softmax(z) if soft else z

    return answer
