"""A caller's rows as they are remembered, and how far others lie from them: what `near-duplicates` and `small-steps` have in common.

They are remembered as whole numbers of one byte, in the columns `rows`, number by number of the projection, and `square`, their squared length. Sums of products of
such numbers are exact in single precision, in whatever order they are added.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from garrison.guard.detectors.base import Column, Seen
from garrison.types import Array, FloatArray, IntArray

FAR = np.float32(np.inf)
_LARGEST = 127
_NUMBERS = 2**16
"""Remembered rows are copied so many numbers at a time: these copies should stay near the processor."""


def columns_of(slots: int, width: int) -> dict[str, Column]:
    """To remember so many rows of each caller."""
    return {"rows": Column("int8", (width, slots)), "square": Column("float32", (slots,), np.inf)}


def whole(projection: FloatArray, unit: float) -> FloatArray:
    """Projections in whole numbers of a unit; larger ones than 127 are cut."""
    x: FloatArray = projection * np.float32(1 / unit)
    np.rint(x, out=x)
    return np.minimum(np.maximum(x, -_LARGEST, out=x), _LARGEST, out=x)


class _Sorted:
    """Rows as whole numbers, in the order of `Order.sorted`.

    Attributes:
        x: shape (rows, width).
        twice: the same, times -2.
        own: squared lengths, shape (rows,).
        place: shape (rows,).
        among: by group of `Order.groups`, its rows, how many each caller has, and, shape (callers, rows of each, rows of each), squared distances to
            others of the same caller, less `own`; None where each has one row.
    """

    def __init__(self, seen: Seen, unit: float) -> None:
        order = seen.order
        self.x = x = whole(seen.projection[order.sorted], unit)
        self.twice, self.own = x * np.float32(-2), np.vecdot(x, x)
        self.place = np.repeat(order.keys, order.counts)
        self.among = [(part, count, self._among(part, count)) for part, count in order.groups()]

    def _among(self, part: slice, count: int) -> FloatArray | None:
        if count == 1:
            return None
        shape = -1, count, self.x.shape[1]
        found: FloatArray = self.twice[part].reshape(shape) @ self.x[part].reshape(shape).transpose(0, 2, 1)
        found += self.own[part].reshape(-1, 1, count)
        return found


def _sorted(seen: Seen, unit: float) -> _Sorted:
    """Made once for all detectors that measure in the same unit."""
    made: dict[float, _Sorted] = vars(seen).setdefault("sorted", {})
    if unit not in made:
        made[unit] = _Sorted(seen, unit)
    return made[unit]


def apart(seen: Seen, unit: float, slot: IntArray, columns: Mapping[str, Array]) -> tuple[FloatArray, FloatArray]:
    """Look at rows, then remember them.

    Args:
        unit: see `whole`.
        slot: shape (rows,), where each row is to be remembered, in place of whatever stands there; the caller's next row meets it there.
        columns: see `columns_of`.

    Returns:
        Both in the order of `Order.sorted`: squared distances, shape (rows, slots), infinite where no row stands, and of each line taken off before what is the same
        all along it, the row's own squared length; and that, shape (rows,).
    """
    rows, square, slot = columns["rows"], columns["square"], slot[seen.order.sorted]
    mine = _sorted(seen, unit)
    found = np.empty((len(slot), square.shape[1]), dtype=np.float32)
    for part, count, among in mine.among:
        callers = mine.place[part.start : part.stop : count]
        distances = found[part].reshape(-1, count, found.shape[1])
        _products(rows, callers, mine.twice[part].reshape(-1, count, rows.shape[1]), distances)
        distances += square.take(callers, axis=0)[:, np.newaxis]
        if among is not None:
            line, (later, earlier) = np.arange(len(callers))[:, np.newaxis], _pairs(count)
            distances[line, later, slot[part].reshape(-1, count)[:, earlier]] = among[:, later, earlier]
    # Of several in one slot the last stands, and so above.
    rows[mine.place, :, slot], square[mine.place, slot] = mine.x, mine.own
    return found, mine.own


def _products(rows: Array, callers: IntArray, x: FloatArray, found: FloatArray) -> None:
    """Of each row with all remembered ones of its caller.

    Args:
        x: shape (callers, rows of each, width).
        found: to be filled; shape (callers, rows of each, slots).
    """
    shape = rows.shape[1:]
    at_once = max(1, _NUMBERS // (shape[0] * shape[1]))
    many = _scratch(at_once * shape[0] * shape[1]).reshape(at_once, *shape)
    for start in range(0, len(callers), at_once):
        part = slice(start, start + at_once)
        mine = rows.take(callers[part], axis=0)
        some = many[: len(mine)]
        np.copyto(some, mine)
        np.matmul(x[part], some, out=found[part])


_held = threading.local()


def _scratch(numbers: int) -> FloatArray:
    """Room for so many numbers, the same each time: to ask the system for it takes longer than to fill it."""
    found: FloatArray | None = getattr(_held, "room", None)
    if found is None or len(found) < numbers:
        found = _held.room = np.empty(max(numbers, _NUMBERS), dtype=np.float32)
    return found[:numbers]


@lru_cache(maxsize=64)
def _pairs(count: int) -> tuple[IntArray, IntArray]:
    """Each row with each one before it: the later ones in rising order, and of each the earlier in rising order."""
    return np.tril_indices(count, -1)
