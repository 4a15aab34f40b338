"""Adaptive misinformation that is wrong but plausible: near-duplicates are misinformed alike, as an honest model would answer them.

Adaptive misinformation draws the wrong class anew for each input, so an input that is changed by one bit gets another class, which no smooth
model does: two questions show it. Here the class is a function of f(x) and the owner's key alone:

    named(x) = argmax over all k but j of  f_k(x) exp(spread g_jk),    j f's first choice, g keyed Gumbel noise, one number a pair of classes

With spread 0 it is the runner-up. The noise is drawn for each j: one for all would have the same class named nearly always. The price: the classes follow f, so they tell something of it to an attacker who knows how to read them.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from garrison.guard.defenses.adaptive_misinformation import AdaptiveMisinformation, first_choices
from garrison.types import FloatArray

LEAST = 1e-6
"""What a class weighs at least, so that the key decides where f gives all to one."""


class DeceptiveMisinformation(AdaptiveMisinformation, frozen=True):
    """Answer out-of-distribution inputs with a plausible class that is not f's first choice.

    Does not stop: an attacker who knows it and has some honest pairs learns from which answers which class is missing.

    Attributes:
        spread: how much the key counts against f's own order of the classes, in units of standard Gumbel noise; 0 to 10.
    """

    name: ClassVar[str] = "deceptive-misinformation"

    spread: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.spread <= 10:
            raise ValueError(f"deceptive-misinformation.spread must lie in 0 to 10, found {self.spread}")

    def named(self, f: list[float], wrong: list[float], gumbel: list[float], table: FloatArray) -> int:  # noqa: ARG002
        own = f.index(max(f))
        bias = self._bias(table, own, len(f))
        weights = [max(p, LEAST) * b if p == p else 0.0 for p, b in zip(f, bias, strict=True)]
        weights[own] = -1.0
        return weights.index(max(weights))

    def named_rows(
        self,
        f: FloatArray,
        wrong: FloatArray,  # noqa: ARG002
        gumbel: FloatArray,  # noqa: ARG002
        table: FloatArray,
    ) -> npt.NDArray[np.intp]:
        own = first_choices(f)
        biases = {j: self._bias(table, j, f.shape[1]) for j in set(own.tolist())}
        bias = np.array([biases[j] for j in own.tolist()])
        weights = np.where(np.isnan(f), 0.0, np.where(f > LEAST, f, LEAST) * bias)
        weights[np.arange(len(f)), own] = -1.0
        found: npt.NDArray[np.intp] = weights.argmax(axis=1)
        return found

    def _bias(self, table: FloatArray, own: int, classes: int) -> list[float]:
        """The same for all inputs with this first choice: a row of the table that the choice picks, not the input."""
        return [math.exp(self.spread * noise) for noise in table[own % len(table), :classes].tolist()]
