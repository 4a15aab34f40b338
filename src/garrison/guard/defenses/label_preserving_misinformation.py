"""Adaptive misinformation that keeps the first choice: the class is f's own, all else of the answer is keyed noise.

No served accuracy is lost, whatever tau is, so tau may lie above every honest row. What is taken away is what soft answers tell beyond labels.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from garrison.guard.defenses.adaptive_misinformation import AdaptiveMisinformation, first_choices
from garrison.types import FloatArray


class LabelPreservingMisinformation(AdaptiveMisinformation, frozen=True):
    """Answer inputs below tau with f's first choice, and a margin and other classes that are drawn by the key.

    Does not stop: clones trained on labels alone, which learn as from an undefended model.
    """

    name: ClassVar[str] = "label-preserving-misinformation"

    def named(self, f: list[float], wrong: list[float], gumbel: list[float], table: FloatArray) -> int:  # noqa: ARG002
        return f.index(max(f))

    def named_rows(
        self,
        f: FloatArray,
        wrong: FloatArray,  # noqa: ARG002
        gumbel: FloatArray,  # noqa: ARG002
        table: FloatArray,  # noqa: ARG002
    ) -> npt.NDArray[np.intp]:
        return first_choices(f)
