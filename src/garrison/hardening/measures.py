"""Figures of merit that calibration and reports need, in numpy alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from garrison.types import FloatArray

LEVEL = 0.95
"""Confidence of a one-sided limit."""


def upper_limit(events: int, rows: int, level: float = LEVEL) -> float:
    """One-sided upper confidence limit of a share (Clopper and Pearson, 1934): `events` seen in `rows` independent rows."""
    if events >= rows:
        return 1.0
    low, high = events / rows, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _binomial_cdf(events, rows, middle) > 1 - level else (low, middle)
    return high


def lower_limit(events: int, rows: int, level: float = LEVEL) -> float:
    """One-sided lower confidence limit of a share; see `upper_limit`."""
    return 1.0 - upper_limit(rows - events, rows, level)


def _binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) for X binomial; summed from the likeliest terms' logarithms, so that nothing underflows."""
    if p <= 0:
        return 1.0
    if p >= 1:
        return float(k >= n)
    i = np.arange(k + 1)
    steps = np.log(n - i[:-1]) - np.log(i[1:]) + math.log(p) - math.log1p(-p)
    terms = n * math.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)])
    top = terms.max()
    return min(1.0, float(np.exp(top) * np.exp(terms - top).sum()))


def auroc(inside: FloatArray, outside: FloatArray) -> float:
    """P(score of an in-distribution row > score of an outlier), ties half: area under the ROC curve, 0.5 is chance."""
    both = np.concatenate([inside, outside])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(inside), len(outside)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def diversity(classes: npt.NDArray[np.integer], number: int) -> tuple[int, float]:
    """Number of classes that occur in these first choices, and their entropy divided by log(number)."""
    counts = np.bincount(classes, minlength=number)
    share = counts[counts > 0] / counts.sum()
    return int((counts > 0).sum()), float(-(share * np.log(share)).sum() / math.log(number))
