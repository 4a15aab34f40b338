"""How far two distributions over the same bins are from each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from garrison.types import FloatArray

FLOOR = 1e-4
"""Added to every share, so that a bin which is empty on one side weighs much and not infinitely."""


def psi(now: FloatArray, reference: FloatArray, start: npt.NDArray[np.intp]) -> FloatArray:
    """Population stability index of each column: the sum of (p - q) ln(p / q) over its bins (Jeffreys' divergence).

    Args:
        now: shape (..., bins), shares of all columns, one after the other.
        reference: shape (bins,).
        start: shape (columns,), where each column begins.

    Returns:
        Shape (..., columns), at least 0.
    """
    p, q = now + FLOOR, reference + FLOOR
    terms = (p - q) * np.log(p / q)
    found: FloatArray = np.add.reduceat(terms, start, axis=-1)
    return found


def ks(now: FloatArray, reference: FloatArray, start: npt.NDArray[np.intp]) -> FloatArray:
    """Largest difference of the two distribution functions of each column, at the edges of its bins (Kolmogorov and Smirnov).

    Both sum to 1 in each column, so the running sum over all columns begins each one at 0.
    """
    apart: Any = np.abs(np.cumsum(now - reference, axis=-1))
    found: FloatArray = np.maximum.reduceat(apart, start, axis=-1)
    return found
