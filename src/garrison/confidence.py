"""One-sided limits of a share (Clopper and Pearson, Biometrika 1934), in numpy alone.

Of `events` in `rows` independent rows, the upper limit is the share at which so few events have the chance 1 - level, the lower one that at which so many have.
"""

from __future__ import annotations

import math

import numpy as np

LEVEL = 0.95
"""Confidence of a one-sided limit."""


def upper_limit(events: int, rows: int, level: float = LEVEL) -> float:
    """The largest share that is not excluded; 1 where every row was one, or there was none."""
    if events >= rows:
        return 1.0
    low, high = events / rows, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _binomial_cdf(events, rows, middle) > 1 - level else (low, middle)
    return high


def lower_limit(events: int, rows: int, level: float = LEVEL) -> float:
    """The smallest share that is not excluded; 0 where no row was one."""
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
