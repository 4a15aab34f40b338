"""Which of some rows are whose, found once for all who ask; and sums that go from each row of a caller to its next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from garrison.types import FloatArray, IntArray

_GRID = 2.0**-20


class Order(NamedTuple):
    """Rows by key.

    Attributes:
        keys: shape (keys,), each once, those with few rows first.
        number: shape (rows,), which of `keys` a row has.
        turn: shape (rows,), how many rows of the same key came before.
        turns: the largest of them and 1.
        sorted: shape (rows,), the rows key by key, those of one key in turn.
        counts: shape (keys,), rows of each key.
    """

    keys: npt.NDArray[np.intp]
    number: IntArray
    turn: IntArray
    turns: int
    sorted: IntArray
    counts: IntArray

    def groups(self) -> Iterator[tuple[slice, int]]:
        """Keys with equally many rows: where their rows stand in `sorted`, and how many each has."""
        start = 0
        for count, keys in Counter(self.counts.tolist()).items():
            yield slice(start, start + count * keys), count
            start += count * keys


def order_of(keys: npt.NDArray[np.intp]) -> Order:
    """Find rows that have the same key; there is at least one."""
    rows = np.arange(len(keys))
    if len(set(keys.tolist())) == len(keys):  # faster than numpy on a batch
        return Order(keys, rows, np.zeros_like(rows), 1, rows, np.ones_like(rows))
    by = keys.argsort(kind="stable")
    ordered = keys[by]
    first = np.empty(len(keys), dtype=np.bool_)
    first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    starts = first.nonzero()[0]
    inside = first.cumsum()
    inside -= 1
    counts = np.bincount(inside)
    turns = int(counts.max())
    after = rows - starts[inside]
    if counts.min() < turns:
        rising = counts.argsort(kind="stable")
        rank = np.empty_like(rising)
        rank[rising] = rows[: len(rising)]
        inside = rank[inside]
        moved = inside.argsort(kind="stable")
        by, inside, after = by[moved], inside[moved], after[moved]
        starts, counts = starts[rising], counts[rising]
    number, turn = np.empty_like(rows), np.empty_like(rows)
    number[by], turn[by] = inside, after
    return Order(ordered[starts], number, turn, turns, by, counts)


def sums_after(before: FloatArray, more: FloatArray, order: Order) -> FloatArray:
    """`max(0, sum + more)` row by row: the sums after each row, shape (keys, turns, ...); where a key has fewer rows, as after its last.

    Done again and again it is the sum of all that was added, less the least that it ever came to, where that is below 0.

    Args:
        before: shape (keys, ...).
        more: shape (rows, ...).
    """
    path = np.zeros((len(order.keys), order.turns, *more.shape[1:]))
    path[order.number, order.turn] = more
    path[:, 0] += before
    np.cumsum(path, axis=1, out=path)
    path -= np.minimum(np.minimum.accumulate(path, axis=1), 0.0)
    return path


def running(sums: FloatArray, order: Order, more: FloatArray) -> FloatArray:
    """Add to sums by key as `sums_after` does: the key's sum after each row, shape (rows,)."""
    if order.turns == 1:
        one: FloatArray = np.maximum(sums[order.keys] + more, 0.0)
        sums[order.keys] = one
        return one
    path = sums_after(sums[order.keys], more, order)
    sums[order.keys] = path[:, -1]
    found: FloatArray = path[order.number, order.turn]
    return found


def on_grid(number: float) -> float:
    """Rounded, so that sums of such numbers are exact and therefore the same however rows are cut."""
    return round(number / _GRID) * _GRID
