"""The sketch of all rows: histograms and means that fade, which begin at the reference, and how far they are from it.

An exponentially weighted chart (Roberts, Technometrics 1959): after n rows the sketch is 2^(-n / half-life) of what it was, and their shares for the
rest. It begins at the reference, so there is nothing to warm up; the reference itself never changes, so that however slowly callers move,
what they have moved by is seen.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from garrison.guard.drifting.columns import Layout
from garrison.guard.drifting.measures import ks, psi
from garrison.types import Array, FloatArray

BLOCK_ROWS = 256
"""Rows are counted so many at a time, and looked at after each such block."""
KINDS = ("psi", "ks", "ewma", "predictions")
"""What may ring: a feature's histogram, its distribution function, its mean; and the histogram of an answer (label shift)."""


class Look(NamedTuple):
    """What a look at the sketch finds.

    Attributes:
        psi, ks: shape (columns,).
        ewma: shape (columns,), standard errors by which the mean is off.
        values, column: by kind, the largest, and in which column.
    """

    psi: FloatArray
    ks: FloatArray
    ewma: FloatArray
    values: tuple[float, ...]
    column: tuple[int, ...]


class Sketch:
    """See the module's docstring.

    Args:
        layout: the reference.
        half_life: rows after which a row counts half.
        reference_rows: that the reference was made of; 0 where that is not known.

    Attributes:
        shares: shape (bins,), of all rows, faded.
        means: shape (columns,), of the scores.
        prior: share of the sketch that is still the reference which it began with.
        rows: counted so far.
    """

    def __init__(self, layout: Layout, half_life: float, reference_rows: int = 0) -> None:
        self.layout = layout
        self._reference_rows = reference_rows
        self._half_life = half_life
        one = 0.5 ** (1 / half_life)
        self.effective_rows = (1 + one) / (1 - one)
        """So many independent rows would have the noise of the sketch."""
        self._root = math.sqrt(self.effective_rows)
        self._asked = len(layout.columns) - layout.answers
        self.clear()

    def clear(self) -> None:
        self.shares = self.layout.shares.copy()
        self.means = np.zeros(len(self.layout.columns))
        self.prior = 1.0
        self.rows = 0

    def kept(self, rows: int) -> float:
        """The share of the sketch that stays when so many rows come."""
        return float(0.5 ** (rows / self._half_life))

    def add(self, counts: Array, sums: FloatArray, rows: int) -> None:
        """Count a block of rows.

        Args:
            counts: shape (bins,), values in each bin.
            sums: shape (columns,), of the scores.
        """
        kept = self.kept(rows)
        each = (1 - kept) / rows
        self.shares = kept * self.shares + each * counts
        self.means = kept * self.means + each * sums
        self.prior *= kept
        self.rows += rows

    def look(self) -> Look:
        layout = self.layout
        p = psi(self.shares, layout.shares, layout.start)
        d = ks(self.shares, layout.shares, layout.start)
        m = np.abs(self.means) * self._root
        asked = self._asked
        found = [_largest(p[:asked], 0), _largest(d[:asked], 0), _largest(m[:asked], 0), _largest(p[asked:], asked)]
        return Look(p, d, m, tuple(v for v, _ in found), tuple(k for _, k in found))

    def noise(self, column: int) -> tuple[float, float]:
        """The PSI of a column that chance alone makes where nothing has moved: (of the reference, of all rows so far)."""
        degrees = sum(share > 0 for share in self.layout.columns[column].shares) - 1
        asked = self.effective_rows * (1 - self.prior) / (1 + self.prior)
        return degrees / self._reference_rows if self._reference_rows else 0.0, degrees / max(asked, 1.0)


def _largest(values: FloatArray, first: int) -> tuple[float, int]:
    if not len(values):
        return 0.0, first
    k = int(values.argmax())
    return float(values[k]), first + k
