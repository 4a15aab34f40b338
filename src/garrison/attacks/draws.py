"""Rows that an attacker draws or makes: evenly from the stated range, near a given row, or brought to the service's dtype and range."""

from __future__ import annotations

import numpy as np

from garrison.attacks.oracle import OracleFacts
from garrison.types import Array

_MOST_WHOLE = 2**63 - 1
"""Beyond it whole numbers are not drawn."""


def has_range(facts: OracleFacts) -> bool:
    """Whether the service states the smallest and largest value of every feature."""
    return bool(np.isfinite(facts.low).all() and np.isfinite(facts.high).all())


def uniform_rows(rng: np.random.Generator, count: int, facts: OracleFacts) -> Array:
    """Rows (count, *shape) drawn evenly from the stated range of each feature; whole numbers where features are whole numbers."""
    shape = (count, *facts.shape)
    low, high = np.broadcast_to(facts.low, shape), np.broadcast_to(facts.high, shape)
    if facts.dtype.kind in "iub":
        most = np.minimum(high, high.dtype.type(_MOST_WHOLE)) if high.dtype == np.uint64 else high
        whole: Array = rng.integers(low.astype(np.int64), most.astype(np.int64), endpoint=True).astype(facts.dtype)
        return whole
    return within(low + rng.random(shape) * (high - low), facts)


def jittered(rng: np.random.Generator, x: Array, facts: OracleFacts, share: float) -> Array:
    """Rows near x: normal noise with a deviation of that share of each feature's range, cut to the range; x itself for a share of 0 or
    without a stated range. Whole-number features move by whole numbers."""
    if share == 0 or not has_range(facts):
        return x
    noise = rng.normal(size=x.shape) * share * (facts.high.astype(np.float64) - facts.low.astype(np.float64))
    return within(x + (np.round(noise) if facts.dtype.kind in "iub" else noise), facts)


def within(rows: Array, facts: OracleFacts) -> Array:
    """Rows (n, *shape) in the service's dtype and range; whole numbers where features are whole numbers. What is missing stays missing."""
    if facts.dtype.kind in "iub":
        rows = np.rint(rows)
    # Rounding to a narrower dtype must not leave the range.
    cut: Array = np.clip(rows, facts.low, facts.high).astype(facts.dtype)
    found: Array = np.clip(cut, facts.low, facts.high).astype(facts.dtype)
    return found
