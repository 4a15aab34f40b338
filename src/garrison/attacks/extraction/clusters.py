"""Groups of unlabelled rows: what a thief chooses among where nobody named the rows.

k-means (Lloyd 1982) with the start of Arthur and Vassilvitskii (SODA 2007), on a random projection of the rows, which keeps distances
(Johnson and Lindenstrauss 1984). Invariant: equal rows and generator give equal groups; every row is in one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from garrison.types import Array, FloatArray

WIDTH = 64
"""Numbers a row after projection."""
MOST_FITTED = 5000
"""Rows that the centres are fitted to; the others go to the nearest centre."""
_ROUNDS = 12
_SLICE = 4096

Groups = npt.NDArray[np.int64]


def clusters(x: Array, k: int, rng: np.random.Generator) -> Groups:
    """Numbers of groups, 0 to k - 1, shape (rows,); some may be empty where rows are alike.

    Args:
        x: (rows, *shape); NaN counts as 0.
        k: at least 1.
        rng: of projection and start.
    """
    points = projected(x, rng)
    fitted = points[rng.permutation(len(points))[:MOST_FITTED]]
    centres = _first_centres(fitted, k, rng)
    for _ in range(_ROUNDS):
        nearest = _nearest(fitted, centres)
        counts = np.bincount(nearest, minlength=k)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, fitted)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return _nearest(points, centres)


def projected(x: Array, rng: np.random.Generator) -> FloatArray:
    """Rows as at most `WIDTH` numbers, shape (rows, width)."""
    flat = x.reshape(len(x), -1)
    if flat.shape[1] <= WIDTH:
        return np.nan_to_num(flat.astype(np.float64))
    onto = rng.normal(size=(flat.shape[1], WIDTH)).astype(np.float32) / np.float32(np.sqrt(WIDTH))
    parts = [np.nan_to_num(flat[i : i + _SLICE].astype(np.float32)) @ onto for i in range(0, len(flat), _SLICE)]
    found: FloatArray = np.concatenate(parts).astype(np.float64) if parts else np.zeros((0, WIDTH))
    return found


def distances(points: FloatArray, centres: FloatArray) -> FloatArray:
    """Squared distances, shape (points, centres), not below 0."""
    square = (points**2).sum(axis=1)[:, None] - 2 * points @ centres.T + (centres**2).sum(axis=1)
    found: FloatArray = np.maximum(square, 0.0)
    return found


def _first_centres(points: FloatArray, k: int, rng: np.random.Generator) -> FloatArray:
    """Each next centre with a chance proportional to its squared distance from those there are."""
    chosen = [points[int(rng.integers(len(points)))]]
    nearest = distances(points, np.array(chosen))[:, 0]
    while len(chosen) < k:
        total = float(nearest.sum())
        place = int(rng.choice(len(points), p=nearest / total)) if total > 0 else int(rng.integers(len(points)))
        chosen.append(points[place])
        nearest = np.minimum(nearest, distances(points, points[place][None])[:, 0])
    return np.array(chosen)


def _nearest(points: FloatArray, centres: FloatArray) -> Groups:
    parts = [distances(points[i : i + _SLICE], centres).argmin(axis=1) for i in range(0, len(points), _SLICE)]
    return np.concatenate(parts).astype(np.int64)
