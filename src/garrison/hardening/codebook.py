"""Calibrates ModelGuard-S: the fewest answers that stand for nearly all honest ones.

For each first class the honest answers with that class are covered by balls of radius epsilon in L1, whose centres are some of them: a greedy
set cover; of the answers that cover nearly as many the one in their middle is taken, so that honest answers change little. The logarithm of the
number of centres is then a bound on what an answer tells beyond its first class. Two plain vectors a class are added, one flat and one sure, for
what is no honest answer.

Not checked: whether the rows are really held out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from garrison.errors import CalibrationError
from garrison.guard.defenses.modelguard_s import MOST_NUMBERS
from garrison.guard.perturbing import LEAD
from garrison.types import Array, BoolArray, FloatArray

COVERED = 0.99
"""Share of a class's calibration answers within epsilon of a code."""
_PLAIN = (0.2, 0.6)
"""The first class's lead before the others, in the vectors that are added."""
_NEARLY = 0.98
_MOST_CODES = 16
_MOST_ROWS = 500
_DIGITS = 5


def calibrated(parameters: dict[str, Any], probabilities: Array) -> dict[str, Any]:
    """The parameters of `modelguard-s` with its codes, where none are given.

    Args:
        parameters: as the owner gave them.
        probabilities: (rows, classes), answers to held-out benign rows.

    Raises:
        CalibrationError: no probabilities, too many classes, or an epsilon that is none.
    """
    if "codes" in parameters:
        return parameters
    epsilon = parameters.get("epsilon", 1.0)
    if not isinstance(epsilon, int | float) or not 0 < epsilon <= 2:
        raise CalibrationError(f"modelguard-s.epsilon must lie above 0 and be at most 2, found {epsilon!r}")
    return parameters | {"codes": [code.tolist() for code in codebook(probabilities, float(epsilon))]}


def codebook(probabilities: FloatArray, epsilon: float) -> FloatArray:
    """Codes for all classes, shape (codes, classes), each rounded to a few digits and summing to 1.

    Raises:
        CalibrationError: no finite probabilities, or more classes than a codebook can hold.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or not np.isfinite(probabilities).all():
        raise CalibrationError("modelguard-s is calibrated on finite probabilities of at least two classes")
    classes = probabilities.shape[1]
    most = min(_MOST_CODES, MOST_NUMBERS // classes**2 - len(_PLAIN))
    if most < 0:
        raise CalibrationError(
            f"modelguard-s: {classes} classes need a codebook of more than {MOST_NUMBERS} numbers. Release the first "
            "class alone instead (--release label): with one code a class an answer says no more than that"
        )
    p = probabilities.astype(np.float64)
    p = p / p.sum(axis=1, keepdims=True)
    best = np.sort(p, axis=1)
    sure = best[:, -1] - best[:, -2] >= 2 * LEAD  # rounding leaves enough of it
    found = []
    for k in range(classes):
        own = p[sure & (p.argmax(axis=1) == k)][:_MOST_ROWS]
        found += [*_cover(own, epsilon, most), *_plain(k, classes)]
    return np.array([_rounded(code) for code in found])


def _cover(answers: FloatArray, epsilon: float, most: int) -> list[FloatArray]:
    """Some of the answers, at most so many, of which one is within epsilon of nearly all."""
    if not len(answers):
        return []
    apart = np.stack([np.abs(answers - one).sum(axis=1) for one in answers])
    within = apart <= epsilon
    left: BoolArray = np.ones(len(answers), dtype=np.bool_)
    found: list[FloatArray] = []
    while left.sum() > (1 - COVERED) * len(answers) and len(found) < most:
        counts, cost = (within & left).sum(axis=1), np.where(within & left, apart, 0.0).sum(axis=1)
        best = int(np.where(counts >= _NEARLY * counts.max(), cost / np.maximum(counts, 1), np.inf).argmin())
        found.append(answers[best])
        left &= ~within[best]
    return found


def _plain(k: int, classes: int) -> list[FloatArray]:
    """Vectors with class k first, at some distance before all others, which are equal."""
    unit = np.eye(classes)[k]
    return [lead * unit + (1 - lead) / classes for lead in _PLAIN]


def _rounded(code: FloatArray) -> FloatArray:
    """A few digits, and what is missing to 1 goes to the largest."""
    found: FloatArray = np.round(code, _DIGITS)
    found[found.argmax()] += 1.0 - found.sum()
    return np.round(found, _DIGITS)
