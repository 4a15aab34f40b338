"""Shares over rows and their intervals. Pure functions of numpy arrays; nothing here knows of models or services.

Invariants: a mean over rows comes with a percentile bootstrap over those rows, a mean over three or more seeds with Student's
interval over the seeds; the name of an interval says which of the two it is. The bootstrap is seeded, so equal rows give equal
intervals.

Not covered by the bootstrap: how the result would vary with another training run. That is what seeds are for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from garrison.types import BoolArray, FloatArray

LEVEL = 0.95
RESAMPLES = 2000
FEWEST_SEEDS = 3
"""From so many seeds on the interval is one over seeds."""
NO_INTERVAL = "none"
ONE_NUMBER = "none: one number, fewer than three seeds"
_FEW_VALUES = 64
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval; `low` and `high` are None where there is none, and `interval` then says why."""

    value: float
    low: float | None
    high: float | None
    interval: str


def correct(labels: npt.NDArray[np.integer], expected: npt.NDArray[np.integer]) -> FloatArray:
    """1.0 where they agree, else 0.0; shape (rows,). Its mean is accuracy against the truth, fidelity against a model."""
    found: FloatArray = (np.asarray(labels) == np.asarray(expected)).astype(np.float64)
    return found


def total_variation(p: FloatArray, q: FloatArray) -> FloatArray:
    """Half the L1 distance of two probability vectors, row by row, in [0, 1]; shape (rows,)."""
    found: FloatArray = 0.5 * np.abs(p.astype(np.float64) - q.astype(np.float64)).sum(axis=1)
    return found


def most_frequent_share(labels: npt.NDArray[np.integer]) -> float:
    """Share of the most frequent label: what a constant answer gets, the level of chance. Rows below 0 count as no class."""
    known = labels[labels >= 0]
    return float(np.bincount(known).max() / len(labels)) if len(known) else 0.0


def bootstrap_name(level: float = LEVEL) -> str:
    return f"bootstrap over test rows, {level:.0%}".replace("%", " %")


def seeds_name(seeds: int, level: float = LEVEL) -> str:
    return f"t over {seeds} seeds, {level:.0%}".replace("%", " %")


def over_rows(rows: FloatArray, *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """The mean over rows with a percentile bootstrap (Efron 1979) over those rows.

    Args:
        rows: shape (rows,), at least one.
        level: of the two-sided interval.
        seed: of the resampling.
    """
    rows = np.asarray(rows, dtype=np.float64)
    low, high = np.quantile(_resampled_means(rows, np.random.default_rng(seed)), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(rows.mean()), float(low), float(high), bootstrap_name(level))


def _resampled_means(rows: FloatArray, rng: np.random.Generator) -> FloatArray:
    values, counts = np.unique(rows, return_counts=True)
    if len(values) <= _FEW_VALUES:
        # Drawing rows with replacement is drawing their values from a multinomial: the same distribution, far cheaper.
        drawn = rng.multinomial(len(rows), counts / len(rows), RESAMPLES)
        few: FloatArray = drawn @ values / len(rows)
        return few
    at_once = max(1, _DRAWS_AT_ONCE // len(rows))
    parts = [
        rows[rng.integers(0, len(rows), (min(at_once, RESAMPLES - first), len(rows)))].mean(axis=1)
        for first in range(0, RESAMPLES, at_once)
    ]
    return np.concatenate(parts)


def over_seeds(means: FloatArray, *, level: float = LEVEL) -> Estimate:
    """The mean over seeds with Student's interval: mean +- t s / sqrt(n), s with n - 1 degrees of freedom.

    Args:
        means: shape (seeds,), at least two.
    """
    means = np.asarray(means, dtype=np.float64)
    n = len(means)
    half = student_quantile((1 + level) / 2, n - 1) * float(means.std(ddof=1)) / math.sqrt(n)
    mean = float(means.mean())
    return Estimate(mean, mean - half, mean + half, seeds_name(n, level))


def pooled(rows_by_seed: list[FloatArray], *, level: float = LEVEL) -> Estimate:
    """One estimate from one array of rows a seed: over seeds where there are three or more, else over the rows, if they are rows."""
    if len(rows_by_seed) >= FEWEST_SEEDS:
        return over_seeds(np.array([rows.mean() for rows in rows_by_seed]), level=level)
    rows = np.mean(np.stack(rows_by_seed), axis=0)
    return Estimate(float(rows[0]), None, None, ONE_NUMBER) if len(rows) == 1 else over_rows(rows, level=level)


def student_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t for whole degrees of freedom, by bisection of the closed form (Abramowitz and Stegun 26.7).

    Args:
        p: above 0.5, below 1.
        degrees: at least 1.
    """
    low, high = 0.0, 1.0
    while _central_mass(high, degrees) < 2 * p - 1:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, degrees) < 2 * p - 1 else (low, middle)
    return (low + high) / 2


def _central_mass(t: float, degrees: int) -> float:
    """P(-t < T < t), equations 26.7.3 and 26.7.4."""
    theta = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(theta), math.cos(theta)
    term, total = (cosine, 0.0) if degrees % 2 else (1.0, 0.0)
    for k in range(1 + degrees % 2, degrees, 2):
        total += term
        term *= k / (k + 1) * cosine**2
    return 2 / math.pi * (theta + sine * total) if degrees % 2 else sine * total


def wilson(events: int, of: int, what: str, *, z: float = 1.959964) -> Estimate:
    """A share with Wilson's interval (JASA 1927), which holds for few events too.

    Args:
        events: how many of `of`, which is at least 1.
        what: of what they are, for the interval's name.
        z: of the two-sided interval; the default is that of 95 %.
    """
    found, z2 = events / of, z * z / of
    middle, half = (found + z2 / 2) / (1 + z2), math.sqrt(z2 * (found * (1 - found) + z2 / 4)) / (1 + z2)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Estimate(found, low if events else 0.0, high if events < of else 1.0, f"Wilson over {of} {what}, 95 %")


def share(where: BoolArray) -> float:
    """Share of true rows; 0 for no rows."""
    return float(np.mean(where)) if len(where) else 0.0
