"""Which nats a bin is worth: the sequential test of a strange caller against whichever mixture of honest ones looks most like it.

Honest callers differ: one sends pictures as they are, another moves them, a third asks about one class. Of all mixtures of those laws the one is taken that is
nearest to the attacker's in Kullback-Leibler divergence (the reverse information projection). Against it the likelihood ratio has a mean of at most 1 under *every* one of
the honest laws (Li 1999, lemma 4.3; Gruenwald, de Heide and Koolen, "Safe testing", 2024), so honest evidence does not grow, whatever the mixture.
"""

from __future__ import annotations

import numpy as np

from garrison.guard.detectors.tables import MOST_NATS
from garrison.types import FloatArray, IntArray

_ROUNDS = 300
_PRIOR_ROWS = 10.0
"""Rows, spread over all bins, that are added to what was counted: a bin that was never seen is rare, not impossible."""
_DIGITS = 4


def law(found: IntArray, bins: int, weights: FloatArray | None = None) -> FloatArray:
    """How often each bin occurs, shape (bins,), sums to 1 and is nowhere 0.

    Args:
        found: shape (rows,), the bin of each row.
        weights: shape (rows,), how much each row counts; 1 where None.
    """
    counts = np.bincount(found, weights=weights, minlength=bins).astype(np.float64)
    rows = max(1.0, float(counts.sum()))
    counts = counts * (len(found) / rows) + _PRIOR_ROWS / bins
    shares: FloatArray = counts / counts.sum()
    return shares


def nearest_honest(attack: FloatArray, honest: FloatArray) -> FloatArray:
    """The mixture of the honest laws that is nearest to the attacker's, shape (bins,): maximum likelihood by expectation maximisation.

    Args:
        attack: shape (bins,).
        honest: shape (laws, bins), nowhere 0.
    """
    weights = np.full(len(honest), 1.0 / len(honest))
    for _ in range(_ROUNDS):
        weights *= honest @ (attack / (weights @ honest))
    mixture: FloatArray = weights @ honest
    return mixture


def nats_of(attack: FloatArray, honest: FloatArray) -> tuple[float, ...]:
    """Log-likelihood ratios by bin, clipped, and lowered until no honest law's mean exceeds 0."""
    ratio = np.log(attack / nearest_honest(attack, honest))
    clipped = np.clip(ratio, -MOST_NATS, MOST_NATS)
    clipped -= max(0.0, float((honest @ clipped).max()))
    return tuple(round(float(n), _DIGITS) for n in np.clip(clipped, -MOST_NATS, MOST_NATS))
