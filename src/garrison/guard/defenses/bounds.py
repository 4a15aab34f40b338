"""Input bounds: every value finite and within the signed range of its feature (OWASP ML01, first line)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from garrison.guard.base import Marks, RowDefense, Settings, Verdict, View, kept
from garrison.types import Array, FloatArray, InputFacts, ModelFacts, Phase

LONG = 8192
"""From so many values a row on, passes over them take longer than the calls."""
_SINGLE = 4


def within(xp: Any, x: Any, low: Any, high: Any, may_be_missing: Any) -> Any:
    """Rows whose every value lies in [low, high]; NaN only where it may be missing. Infinities are never within.

    Written with comparisons alone: a minimum or maximum over the row would let NaN through in some runtimes.

    Args:
        x: shape (rows, features).
        low, high: shape (features,), or (1,) where all features have the same.
        may_be_missing: shape (features,), boolean; None for nowhere.
    """
    good = (x >= low) & (x <= high)
    if may_be_missing is not None:
        good = good | (may_be_missing & (x != x))  # NaN is not itself
    return xp.all(good, axis=1)


def within_one_range(xp: Any, x: Any, low: Any, high: Any) -> Any:
    """`within` for a long row whose features all have the same range, and none of which may be missing: three passes over it, and no copy.

    Minimum and maximum let NaN through in some runtimes. The sum does not, in any: it is NaN where a value is. It must not overflow
    within the range (`sums_within`); what it comes to outside does not matter, since such a row is refused anyway.

    Args:
        x: shape (rows, features).
        low, high: one number each, in an array without dimensions.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = xp.sum(x, axis=1)
    return (xp.min(x, axis=1) >= low) & (xp.max(x, axis=1) <= high) & (total == total)


@lru_cache(maxsize=256)
def sums_within(spec: InputFacts) -> bool:
    """Whether `within_one_range` judges this input: a long one, of floating-point numbers of one range whose sum is finite with room to spare."""
    features = math.prod(spec.shape)
    if features < LONG or spec.dtype.kind != "f" or spec.dtype.itemsize < _SINGLE or spec.may_be_missing.any():
        return False
    low, high = float(spec.low.flat[0]), float(spec.high.flat[0])
    if not ((spec.low == spec.low.flat[0]).all() and (spec.high == spec.high.flat[0]).all()):
        return False
    return features * max(abs(low), abs(high)) < float(np.finfo(spec.dtype).max) / 4


def _all_within(x: Array, spec: InputFacts) -> bool:
    low, high = _tightest(spec)
    # Where the smallest and the largest value are, instead of what they are: the same for numpy, in less than half of the time for a lone row.
    return bool(low <= x.item(x.argmin()) and x.item(x.argmax()) <= high)


@lru_cache(maxsize=256)
def _tightest(spec: InputFacts) -> tuple[Any, Any]:
    """A range within that of every feature; of NaN where there is none."""
    return spec.low.max().item(), spec.high.min().item()


class Bounds(RowDefense, frozen=True):
    """Refuse inputs outside the range that the manifest gives for each feature.

    Does not check: whether values within the range make sense together; that is the out-of-distribution score's work.
    """

    name: ClassVar[str] = "bounds"
    phase: ClassVar[Phase] = Phase.ADMIT
    reason: ClassVar[str] = "request.input"

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        good = None
        for spec in view.facts.inputs:
            x = view.batch.inputs[spec.name]
            flat = xp.reshape(x, (-1, math.prod(spec.shape)))
            if sums_within(spec):
                found = within_one_range(xp, flat, xp.asarray(spec.low[0]), xp.asarray(spec.high[0]))
            else:
                missing = xp.asarray(spec.may_be_missing) if spec.may_be_missing.any() else None
                found = within(xp, flat, xp.asarray(spec.low), xp.asarray(spec.high), missing)
            good = found if good is None else good & found
        return Marks() if good is None else Marks(refuse=~good)

    def __call__(self, view: View) -> Verdict:
        """The numpy form. Where the smallest and the largest value of all rows are within the range of every feature, no row is looked at by itself.

        To numpy NaN is the smallest and the largest of all values, so that it never takes the short way; to other runtimes it is not.
        """
        return super().__call__(view) if self.glance(view, {}) is None else Verdict(kept(view.batch.rows))

    def glance(self, view: View, settings: Settings) -> Mapping[str, FloatArray] | None:  # noqa: ARG002
        for spec in view.facts.inputs:
            if not _all_within(view.batch.inputs[spec.name], spec):
                return None
        return {}

    def detail(self, facts: ModelFacts) -> str:
        names = ", ".join(spec.name for spec in facts.inputs)
        return f"a value of {names} is NaN, infinite or outside the range that the model's metadata states"
