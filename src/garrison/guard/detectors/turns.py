"""Rows of one caller one after the other, where each changes what the next one meets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from garrison.types import FloatArray, IntArray


def different(place: IntArray) -> bool:
    """Whether no caller stands there twice."""
    return len(set(place.tolist())) == len(place)  # faster than numpy on a batch


def turns(place: IntArray) -> Iterator[npt.NDArray[np.intp]]:
    """The rows in groups in which no caller stands twice, each caller's in order.

    Args:
        place: shape (rows,), whose row it is; at least one.
    """
    if different(place):
        yield np.arange(len(place))
        return
    order = np.argsort(place, kind="stable")
    ordered = place[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    turn = np.arange(len(place)) - np.repeat(starts, np.diff(np.r_[starts, len(place)]))
    for number in range(int(turn.max()) + 1):
        yield order[turn == number]


def summed(sums: FloatArray, place: IntArray, nats: FloatArray) -> None:
    """`sums[place] = max(0, sums[place] + nats)`, row by row in order."""
    if different(place):
        sums[place] = np.maximum(0, sums[place] + nats)
        return
    found: dict[int, float] = {}
    for one, said in zip(place.tolist(), nats.tolist(), strict=True):  # a batch of few callers: numbers of Python
        before = found[one] if one in found else float(sums[one])
        found[one] = max(0.0, before + said)
    sums[list(found)] = list(found.values())
