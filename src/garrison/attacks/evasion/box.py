"""The range of a service's inputs as a box: attacks work in [0, 1], whatever the service takes, and distances are told in shares of the range.

Invariant: a row that leaves here lies within the stated range, in the service's own dtype. Whole-number features move by whole numbers, towards the
picture that was begun with, so that rounding makes no change larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from garrison.attacks.oracle import OracleFacts
from garrison.types import Array, FloatArray

Norm = Literal["linf", "l2"]


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """See the module's docstring.

    Attributes:
        low, width: of the range, each of a row's shape; a width of 0 becomes 1, and such a value cannot move.
        high: the largest values.
        dtype: of a row.
    """

    low: FloatArray
    width: FloatArray
    high: FloatArray
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, facts: OracleFacts) -> Self:
        """The box of a service that states a finite range."""
        low, high = (np.broadcast_to(np.asarray(v, np.float64), facts.shape) for v in (facts.low, facts.high))
        width = np.where(high > low, high - low, 1.0)
        return cls(low, width, high, facts.dtype)

    def scaled(self, x: Array) -> FloatArray:
        """Rows as shares of the range, in double precision."""
        found: FloatArray = (x.astype(np.float64) - self.low) / self.width
        return found

    def rows(self, u: FloatArray, begun: Array) -> Array:
        """Rows of the service's dtype.

        Args:
            u: shape (rows, ...), shares of the range.
            begun: the picture that was begun with, in the service's dtype.
        """
        if self.dtype.kind in "iub":
            moved = begun.astype(np.float64) + np.trunc((u - self.scaled(begun)) * self.width)
            whole: Array = np.clip(moved, self.low, self.high).astype(self.dtype)
            return whole
        low, high = self.low.astype(self.dtype), self.high.astype(self.dtype)  # the service compares in its own type
        found: Array = np.clip((self.low + u * self.width).astype(self.dtype), low, high)
        return found

    def distance(self, x: Array, begun: Array, norm: Norm) -> FloatArray:
        """How far rows lie from the picture that was begun with, in shares of the range, shape (rows,)."""
        apart = np.abs(self.scaled(x) - self.scaled(begun)).reshape(len(x), -1)
        found: FloatArray = apart.max(axis=1) if norm == "linf" else np.sqrt((apart**2).sum(axis=1))
        return found
