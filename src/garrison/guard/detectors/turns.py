"""Rows of one caller one after the other, where each changes what the next one meets."""

from __future__ import annotations

import numpy as np

from garrison.types import FloatArray, IntArray


def different(place: IntArray) -> bool:
    """Whether no caller stands there twice."""
    return len(set(place.tolist())) == len(place)  # faster than numpy on a batch


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
