"""What a service's answers are worth to honest users, and how they change. Pure functions of numpy arrays.

Definitions: accuracy, fidelity and total variation stand in `garrison.attacks.measures` and are never mixed. All shares lie in
[0, 1]; a row without an answer counts as wrong, as changed, and is left out of measures over probabilities.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from garrison.attacks.measures import LEVEL, NO_INTERVAL, RESAMPLES, Estimate, bootstrap_name, over_rows
from garrison.types import FloatArray

CALIBRATION_BINS = 15
Labels = npt.NDArray[np.integer]


def accuracy(labels: Labels, y: Labels) -> Estimate:
    """Share of rows whose label is the true class."""
    return over_rows((labels == y).astype(np.float64))


def paired_loss(before: Labels, after: Labels, y: Labels) -> Estimate:
    """Accuracy before minus accuracy after, on the same rows; the bootstrap keeps the pairs. Negative where it grew."""
    return over_rows((before == y).astype(np.float64) - (after == y).astype(np.float64))


def agreement(a: Labels, b: Labels) -> Estimate:
    """Share of rows with the same label: fidelity between models, similarity between answers."""
    return over_rows((a == b).astype(np.float64))


def changed(a: Labels, b: Labels) -> Estimate:
    """Share of rows with another label."""
    return over_rows((a != b).astype(np.float64))


def mean_l1(p: FloatArray, q: FloatArray) -> Estimate:
    """Mean over rows of sum_k |p_k - q_k|, in [0, 2]."""
    return over_rows(np.abs(p.astype(np.float64) - q.astype(np.float64)).sum(axis=1))


def calibration_error(p: FloatArray, y: Labels, bins: int = CALIBRATION_BINS) -> Estimate:
    """Expected calibration error (Guo et al., ICML 2017): sum over bins of |accuracy - confidence| weighted by rows.

    Bins are of equal width over the largest probability, each closed above. The bootstrap over rows is biased upwards, as the
    measure itself is: it is 0 only for infinitely many rows.

    Args:
        p: (rows, classes).
        y: (rows,).
    """
    confidence = p.max(axis=1).astype(np.float64)
    gap = (p.argmax(axis=1) == y) - confidence
    number = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)

    def error(rows: npt.NDArray[np.int64]) -> float:
        return float(np.abs(np.bincount(number[rows], gap[rows], bins)).sum() / len(rows))

    everything = np.arange(len(y))
    rng = np.random.default_rng(0)
    again = [error(rng.integers(0, len(y), len(y))) for _ in range(RESAMPLES // 4)]
    return _percentiles(error(everything), np.array(again))


def normalised_entropy(labels: Labels, classes: int) -> Estimate:
    """Entropy of the histogram of labels over log(classes): 1 where all classes are answered equally often. Rows below 0 are left
    out.

    Raises:
        ValueError: no row has a label, or there is only one class.
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    if classes < 2 or not counts.sum():
        raise ValueError("entropy needs at least two classes and one labelled row")
    drawn = np.random.default_rng(0).multinomial(counts.sum(), counts / counts.sum(), RESAMPLES)
    return _percentiles(float(_entropy(counts[np.newaxis])[0]), _entropy(drawn))


def _entropy(counts: npt.NDArray[np.int64]) -> FloatArray:
    p = counts / counts.sum(axis=1, keepdims=True)
    found: FloatArray = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1) / math.log(counts.shape[1])
    return found


def classes_used(labels: Labels) -> Estimate:
    """How many different classes are answered."""
    return Estimate(float(len(np.unique(labels[labels >= 0]))), None, None, f"{NO_INTERVAL}: a count")


def queries_to(fidelity: float, by_queries: dict[int, float]) -> int | None:
    """Q@f: the fewest of the tried budgets whose fidelity is at least `fidelity`; None where none reaches it."""
    return min((queries for queries, found in by_queries.items() if found >= fidelity), default=None)


def _percentiles(value: float, again: FloatArray) -> Estimate:
    low, high = np.quantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), bootstrap_name())
