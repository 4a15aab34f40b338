"""Input bounds: every value finite and within the signed range of its feature (OWASP ML01, first line)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from garrison.guard.base import RowDefense, Verdict, View
from garrison.types import BoolArray, Phase


def within(xp: Any, x: Any, low: Any, high: Any, may_be_missing: Any) -> Any:
    """Rows whose every value lies in [low, high]; NaN only where it may be missing. Infinities are never within.

    Written with comparisons alone: a minimum or maximum over the row would let NaN through in some runtimes.

    Args:
        x: shape (rows, features).
        low, high: shape (features,).
        may_be_missing: shape (features,), boolean.
    """
    return xp.all(((x >= low) & (x <= high)) | (may_be_missing & (x != x)), axis=1)


class Bounds(RowDefense, frozen=True):
    """Refuse inputs outside the range that the manifest gives for each feature.

    Does not check: whether values within the range make sense together; that is the out-of-distribution score's work.
    """

    name: ClassVar[str] = "bounds"
    phase: ClassVar[Phase] = Phase.ADMIT

    def __call__(self, view: View) -> Verdict:
        good: BoolArray = np.ones(view.batch.rows, dtype=np.bool_)
        for spec in view.facts.inputs:
            x = view.batch.inputs[spec.name]
            good &= within(np, x.reshape(x.shape[0], -1), spec.low, spec.high, spec.may_be_missing)
        names = ", ".join(spec.name for spec in view.facts.inputs)
        return Verdict.refuse(
            ~good,
            "request.input",
            f"a value of {names} is NaN, infinite or outside the range that the model's metadata states",
        )
