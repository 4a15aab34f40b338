"""Rows of a service as pictures, and pictures as rows of the service.

Invariant: what goes to the service lies in its stated range and has its dtype; whole-number services get whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from garrison.attacks.oracle import OracleFacts
from garrison.types import Array, FloatArray

SMALLEST_SIDE = 8
"""Height and width below which a row counts as a table."""
_CHANNELS = (1, 3)


def picture_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(channels, height, width) of rows (height, width), (channels, height, width) or (height, width, channels); None for a table."""
    if len(shape) == 2:
        found = (1, *shape)
    elif len(shape) == 3 and shape[0] in _CHANNELS:
        found = (shape[0], shape[1], shape[2])
    elif len(shape) == 3 and shape[2] in _CHANNELS:
        found = (shape[2], shape[0], shape[1])
    else:
        return None
    return found if min(found[1:]) >= SMALLEST_SIDE else None


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """How rows and pictures are made of each other.

    Attributes:
        shape, dtype: of a row.
        low, high: of a row's values, of `shape`, finite.
        last: whether the channels stand last in a row.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    low: FloatArray
    high: FloatArray
    last: bool

    @classmethod
    def of(cls, facts: OracleFacts, rows: Array) -> Pixels:
        """For a service of pictures; where it states no range, the attacker's own rows give one.

        Args:
            facts: of a service whose shape is one of `picture_shape`.
            rows: (n, *shape), the attacker's own; may be none where the service states a range.
        """
        low, high = (np.broadcast_to(edge, facts.shape).astype(np.float64) for edge in (facts.low, facts.high))
        if len(rows):
            low = np.where(np.isfinite(low), low, float(rows.min()))
            high = np.where(np.isfinite(high), high, float(rows.max()))
        low, high = (np.where(np.isfinite(edge), edge, other) for edge, other in ((low, 0.0), (high, 1.0)))
        last = len(facts.shape) == 3 and facts.shape[0] not in _CHANNELS
        return cls(facts.shape, facts.dtype, low, np.maximum(high, low), last)

    def pictures(self, rows: Array) -> FloatArray:
        """float32 (n, channels, height, width) in [0, 1]."""
        span = np.where(self.high > self.low, self.high - self.low, 1.0)
        unit = np.clip((rows.astype(np.float64) - self.low) / span, 0.0, 1.0).astype(np.float32)
        if len(self.shape) == 2:
            return unit[:, None]
        found: FloatArray = np.ascontiguousarray(np.moveaxis(unit, -1, 1)) if self.last else unit
        return found

    def rows(self, pictures: FloatArray) -> Array:
        """Rows (n, *shape) of the service's dtype from pictures in [0, 1]."""
        if len(self.shape) == 2:
            pictures = pictures[:, 0]
        elif self.last:
            pictures = np.moveaxis(pictures, 1, -1)
        values = self.low + pictures.astype(np.float64) * (self.high - self.low)
        whole = np.round(values) if self.dtype.kind in "iub" else values
        # The service's limits in its own dtype, so that a rounding does not step over them.
        low, high = self.low.astype(self.dtype), self.high.astype(self.dtype)
        found: Array = np.clip(np.ascontiguousarray(whole).astype(self.dtype), low, high)
        return found
