"""Reverse sigmoid: a bump on each probability that several true values share (Lee et al., IEEE S&P workshops 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

from garrison.guard.base import Rows
from garrison.guard.perturbing import Perturbing, first_of


def reverse_sigmoid(xp: Any, p: Any, beta: float, gamma: float) -> Any:
    """`a (p - beta (s(gamma s^-1(p)) - 1/2))`, s the logistic function, a so that each row sums to 1.

    s(gamma s^-1(p)) is p^gamma / (p^gamma + (1 - p)^gamma), which needs no logarithm of 0. Of the first class 1 - p is added up from the others:
    as a difference it would be rounding alone where a model is sure, and the power makes that large.

    Args:
        p: probabilities, shape (rows, classes).
        beta: above 0, at most 1: then no entry becomes negative.
        gamma: above 0.
    """
    p = xp.where(p < 0.0, 0.0, p)  # by rounding; NaN stays
    first = first_of(xp, p)
    others = xp.sum(xp.where(first, 0.0, p), axis=1, keepdims=True)
    own, rest = p**gamma, xp.where(first, others, 1.0 - p) ** gamma
    bent = p - beta * (own / (own + rest) - 0.5)
    return bent / xp.sum(bent, axis=1, keepdims=True)


class ReverseSigmoid(Perturbing, frozen=True, kw_only=True):
    """Bend the probabilities so that different answers look alike.

    Stops: copying the probabilities as they are. Does not stop: whoever reads the first class alone, or knows the formula and undoes it.

    Attributes:
        beta: how much is added or taken, in (0, 1].
        gamma: how fast, in (0, 2]; small ones change small probabilities most.
    """

    name: ClassVar[str] = "reverse-sigmoid"

    beta: float = 0.7
    gamma: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta <= 1 or not 0 < self.gamma <= 2:
            raise ValueError("reverse-sigmoid: beta must lie in (0, 1], and gamma in (0, 2]")

    def target(self, xp: Any, rows: Rows) -> Any:
        return reverse_sigmoid(xp, rows.answer, self.beta, self.gamma)
