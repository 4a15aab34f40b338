"""Rows of one caller one after the other, where each changes what the next one meets."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from garrison.types import BoolArray, FloatArray, IntArray


def different(place: IntArray) -> bool:
    """Whether no caller stands there twice."""
    return len(set(place.tolist())) == len(place)  # faster than numpy on a batch


def summed(sums: FloatArray, place: IntArray, nats: FloatArray) -> None:
    """`sums[place] = max(0, sums[place] + nats)`, row by row in order."""
    if different(place):
        sums[place] = np.maximum(0, sums[place] + nats)
        return
    before = sums.take(place)
    some = (nats > 0) | (before > 0)
    found = dict(zip(place[some].tolist(), before[some].tolist(), strict=True))  # the others' sums stay 0
    if not found:
        return
    for one, said in zip(place.tolist(), nats.tolist(), strict=True):  # numbers of Python
        if one in found:
            found[one] = max(0.0, found[one] + said)
    sums[list(found)] = list(found.values())


def running(sums: FloatArray, place: IntArray, more: FloatArray) -> FloatArray:
    """As `summed`; the caller's sum after each row, shape (rows,), the same bits however rows are cut if `sums` has double precision."""
    if different(place):
        path: FloatArray = np.maximum(0, sums[place] + more)
        sums[place] = path
        return path
    found = dict(zip(place.tolist(), sums.take(place).tolist(), strict=True))
    steps: list[float] = []
    for one, said in zip(place.tolist(), more.tolist(), strict=True):  # numbers of Python
        found[one] = after = max(0.0, found[one] + said)
        steps.append(after)
    sums[list(found)] = list(found.values())
    return np.array(steps)


def pairs_of_one(place: IntArray) -> tuple[IntArray, IntArray]:
    """Each row with each one before it of the same caller: the later ones in rising order, and of each the earlier in rising order."""
    same = place[:, np.newaxis] == place
    same &= _after(len(place))
    return np.divmod(np.flatnonzero(same), len(place))


@lru_cache(maxsize=256)
def _after(rows: int) -> BoolArray:
    """Whether a row comes after another, shape (rows, rows)."""
    return np.tri(rows, k=-1, dtype=np.bool_)
