"""Figures of merit that calibration and reports need, in numpy alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from garrison.types import FloatArray


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


@dataclass(frozen=True, slots=True)
class Wrongness:
    """How wrong, and how spread, f' is on rows with known classes.

    Attributes:
        loss: -log(1 - f'_y), the mean over rows; 0 is perfect.
        loss_untrained: the same of an f' that knows nothing (equal mass everywhere), log(K / (K - 1)).
        mass_on_truth: mean probability that f' leaves to the true class.
        entropy: mean entropy divided by log(K - 1), the most that an f' without the true class can have.
    """

    loss: float
    loss_untrained: float
    mass_on_truth: float
    entropy: float


def wrongness(logs: FloatArray, y: npt.NDArray[np.integer]) -> Wrongness:
    """Judge f' by its log-probabilities, shape (rows, classes), at least three classes."""
    mass = np.exp(logs.astype(np.float64))
    classes, true = mass.shape[1], np.arange(mass.shape[1]) == np.asarray(y)[:, np.newaxis]
    others = np.where(true, 0.0, mass).sum(axis=1) / mass.sum(axis=1)
    terms = np.where(mass > 0, mass * np.log(np.where(mass > 0, mass, 1.0)), 0.0)
    return Wrongness(
        loss=float(-np.log(np.maximum(others, np.finfo(np.float64).tiny)).mean()),
        loss_untrained=math.log(classes / (classes - 1)),
        mass_on_truth=float(mass[true].mean()),
        entropy=float(-terms.sum(axis=1).mean() / math.log(classes - 1)),
    )
