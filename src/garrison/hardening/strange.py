"""Rows as thieves ask them, simulated without an attack: for detectors to be calibrated against.

Invariant: nothing here follows the model's gradients or an attack's own code, so that what a detector is measured on is not what it was fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from garrison.hardening.outliers import outlier_set
from garrison.types import Array

OUTLIERS, UNIFORM, STEPPED = "outliers", "uniform", "stepped"
STEPS = (0.2, 0.4)
"""Of rows of the model's own kind, as a share of the range of their values."""
_PICTURE_AXES = 4


def strange_rows(inputs: Mapping[str, Array], rows: int, rng: np.random.Generator) -> dict[str, dict[str, Array]]:
    """By kind: drawn outliers, uniform noise, and own rows with every value a step up or down; nothing but for one input of real numbers.

    Args:
        inputs: honest rows; there are at least two.
        rows: of each kind.
        rng: for what is drawn.
    """
    (name, x), *more = inputs.items()
    if more or x.dtype.kind != "f" or np.isnan(x).any() or x.ndim not in (2, _PICTURE_AXES):
        return {}
    if x.ndim == _PICTURE_AXES and min(x.shape[2:]) < 8:  # smaller than the drawn kinds can be
        return {}
    low, high = x.min(axis=0), x.max(axis=0)
    if x.ndim == _PICTURE_AXES:
        low, high = np.full_like(low, x.min()), np.full_like(high, x.max())
    seed = int(rng.integers(2**31))
    outliers = outlier_set(x.shape[1:], rows, seed, benign=x, low=float(low.min()), high=float(high.max()))
    made = {
        OUTLIERS: outliers,
        UNIFORM: rng.uniform(low, high, (rows, *x.shape[1:])),
        STEPPED: np.concatenate([_stepped(x, low, high, -(-rows // (2 * len(STEPS))), s, rng) for s in STEPS])[:rows],
    }
    return {kind: {name: np.ascontiguousarray(y, dtype=x.dtype)} for kind, y in made.items()}


def _stepped(x: Array, low: Array, high: Array, rows: int, step: float, rng: np.random.Generator) -> Array:
    """Half of them with a sign for each value, half with one for each square of two by two."""
    own = x[rng.integers(0, len(x), 2 * rows)].astype(np.float64)
    signs = rng.choice([-1.0, 1.0], own.shape)
    if own.ndim == _PICTURE_AXES:
        coarse = signs[rows:, :, ::2, ::2]
        coarse = np.repeat(np.repeat(coarse, 2, axis=2), 2, axis=3)
        signs[rows:] = coarse[:, :, : own.shape[2], : own.shape[3]]
    found: Array = np.clip(own + step * (high - low) * signs, low, high)
    return rng.permutation(found)
