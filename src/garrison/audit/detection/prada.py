"""PRADA as published: does the distribution of distances between one caller's rows look normal?

Juuti, Szyller, Marchal and Asokan, "PRADA: Protecting Against DNN Model Stealing Attacks", EuroS&P 2019, algorithm 1. For each row x of predicted class c:
`d = min_{g in G_c} ||x - g||`, kept in D_c; if d > T_c, x joins G_c, d joins DG_c, and `T_c = max(T_c, mean(DG_c) - std(DG_c))`. Every ten rows the distances
of classes with at least ten are pooled, those beyond three deviations dropped, and with more than a hundred left the caller is alarmed where the statistic W
of Shapiro and Wilk is below delta.

The first row of a class joins G_c with the distance 0: without that zero the bar T_c is at once so high that a tenth of honest rows is kept, not the three quarters
that the authors' figures imply, and nothing rings.

It grows without bound and compares each row with all it kept, so the service has a bounded relative: `garrison.guard.detectors.bounded_prada`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from garrison.errors import MissingExtraError
from garrison.types import Array, FloatArray

try:
    from scipy import stats
except ImportError as error:
    raise MissingExtraError("scipy", "audit") from error

EVERY = 10
FEWEST_OF_A_CLASS = 10
FEWEST = 100
_SIGMAS = 3.0


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What PRADA made of one caller's rows.

    Attributes:
        looks: numbers of rows after which it looked, and there were distances enough.
        w: shape (looks,), Shapiro and Wilk's statistic then.
        kept: rows that it kept.
        rows: rows asked.
    """

    looks: npt.NDArray[np.int64]
    w: FloatArray
    kept: int
    rows: int

    def alarm(self, delta: float) -> int | None:
        """Rows asked at the first look with W below delta; None for never."""
        below = np.flatnonzero(self.w < delta)
        return int(self.looks[below[0]]) if len(below) else None


@dataclass(slots=True, eq=False)
class _Class:
    """Of one class: numbers of the kept rows, all distances, those of the kept rows, and the bar."""

    kept: list[int] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)
    grown: list[float] = field(default_factory=list)
    bar: float = 0.0

    def add(self, row: int, distance: float) -> None:
        """One row, with its distance to the nearest kept row of its class; not finite where there is none."""
        if np.isfinite(distance):
            self.distances.append(distance)
        if distance > self.bar:
            self.kept.append(row)
            self.grown.append(distance if np.isfinite(distance) else 0.0)
            self.bar = max(self.bar, float(np.mean(self.grown) - np.std(self.grown)))


def prada(x: Array, top: npt.NDArray[np.integer]) -> Verdict:
    """Run PRADA over one caller's rows.

    Args:
        x: (rows, ...), as asked.
        top: (rows,), the classes that the model named.
    """
    flat = x.reshape(len(x), -1).astype(np.float32)
    norms = np.einsum("rk,rk->r", flat, flat, dtype=np.float64)
    classes: dict[int, _Class] = {}
    looks, w = [], []
    for row, number in enumerate(top.tolist()):
        one = classes.setdefault(number, _Class())
        one.add(row, _nearest(flat, norms, row, one.kept))
        if (row + 1) % EVERY == 0:
            value = _shapiro(classes)
            if value is not None:
                looks.append(row + 1)
                w.append(value)
    kept = sum(len(one.kept) for one in classes.values())
    return Verdict(np.array(looks, dtype=np.int64), np.array(w), kept, len(top))


def _nearest(flat: FloatArray, norms: FloatArray, row: int, kept: list[int]) -> float:
    if not kept:
        return np.inf
    squares = norms[kept] + norms[row] - 2 * (flat[kept] @ flat[row]).astype(np.float64)
    return float(np.sqrt(max(0.0, float(squares.min()))))


def _shapiro(classes: dict[int, _Class]) -> float | None:
    pooled = [one.distances for one in classes.values() if len(one.distances) >= FEWEST_OF_A_CLASS]
    if not pooled:
        return None
    d = np.concatenate(pooled)
    d = d[np.abs(d - d.mean()) <= _SIGMAS * d.std()]
    return float(stats.shapiro(d).statistic) if len(d) > FEWEST and d.std() > 0 else None
