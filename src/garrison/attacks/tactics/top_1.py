"""Top-1 only: believe the first class, throw the probabilities away.

A defense that keeps the first class and bends the probabilities (reverse sigmoid, rounding, prediction poisoning) gives such a thief
all that it has. Adaptive Misinformation does not, since it changes the first class.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from garrison.attacks.base import Tactic
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import LabelsOnly, MeteredOracle
from garrison.attacks.tactics.common import Within, nearest


class Top1(Tactic, frozen=True):
    """Read the first class alone."""

    name: ClassVar[str] = "top-1"

    def around(
        self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator
    ) -> tuple[MeteredOracle, Knowledge]:
        del rng
        return nearest(LabelsOnly(Within(oracle)), oracle), knowledge
