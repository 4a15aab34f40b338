"""What the answer-perturbing defenses share: an L1 budget, and a first class that stays the first.

Each of them names another answer for f(x), its *target*. What is served lies on the way there,

    answer = f + t (target - f),    t in [0, 1] as large as |answer - f|_1 <= epsilon and the first class allow,

so it is a probability vector whenever both ends are, and a function of the input alone: repeats average nothing away. The arithmetic is written
once over the Array API and has no branch on a value.

Invariants: no more than epsilon in L1; with `keep_first` the first class is f's, and stays ahead of each other class by `LEAD`, or by as much as f
had it ahead where that is less (so that rounding to two digits does not make it a tie). A row of NaN or of what is no probability is answered
with equal probabilities, which say nothing.

Not stopped by any of them while they keep the first class: whoever reads the first class alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from garrison.errors import GuardError
from garrison.guard.base import Marks, RowDefense, Rows, Settings, View
from garrison.types import ModelFacts, Phase, Task

LEAD = 0.01
"""Of the first class before each other one, in probability."""
_SLACK = 0.01
"""A model's own rounding may take probabilities so far out of 0 to 1."""


def first_of(xp: Any, p: Any) -> Any:
    """Where each row's first class stands, shape (rows, classes), boolean; of equal ones the lower."""
    return xp.asarray(np.arange(p.shape[1])[np.newaxis]) == xp.argmax(p, axis=1, keepdims=True)


def toward(xp: Any, p: Any, target: Any, epsilon: float, *, keep_first: bool) -> Any:
    """The farthest point on the way from p to the target within the budget; shape (rows, classes).

    Args:
        p, target: probabilities, shape (rows, classes).
        epsilon: largest L1 distance from p.
        keep_first: stop where another class would come within `LEAD` of p's first.
    """
    step = target - p
    length = xp.sum(xp.abs(step), axis=1, keepdims=True)
    share = epsilon / xp.where(length > epsilon, length, epsilon)
    if keep_first:
        share = xp.min(xp.concat([share, _room(xp, p, step)], axis=1), axis=1, keepdims=True)
    return p + share * step


def _room(xp: Any, p: Any, step: Any) -> Any:
    """How far along the step each class may come before it is too near to the first, shape (rows, classes); at most 1."""
    first = first_of(xp, p)
    lead = xp.max(p, axis=1, keepdims=True) - p
    spare = xp.where(lead > LEAD, lead - LEAD, 0.0)
    closing = step - xp.sum(xp.where(first, step, 0.0), axis=1, keepdims=True)
    binds = closing > spare  # never of the first class itself: both are 0
    return xp.where(binds, spare / xp.where(binds, closing, 1.0), 1.0)


def moved(xp: Any, p: Any, score: Any, mass: float) -> Any:
    """The probability vector that maximises score . q over all q with |q - p|_1 <= 2 mass: exactly, by sorting; shape (rows, classes).

    A linear programme over the simplex and an L1 ball: the class of the highest score gains up to `mass`, and the others lose it,
    those of the lowest score first.

    Args:
        p: probabilities, shape (rows, classes).
        score: shape (rows, classes); of equal scores the lower class counts as the lower.
        mass: above 0, at most 1.
    """
    order = xp.argsort(score, axis=1, stable=True)
    back = xp.argsort(order, axis=1, stable=True)
    rising = xp.take_along_axis(p, order, axis=1)
    given, top = rising[:, :-1], rising[:, -1:]
    gone = xp.cumulative_sum(given, axis=1) - given  # what the classes before have given at most
    left = mass - gone
    taken = xp.where(left > given, given, xp.where(left > 0.0, left, 0.0))
    found = xp.concat([given - taken, top + xp.sum(taken, axis=1, keepdims=True)], axis=1)
    return xp.take_along_axis(found, back, axis=1)


class Perturbing(RowDefense, frozen=True):
    """Base of the answer-perturbing defenses: they write `target`.

    Attributes:
        epsilon: largest change of an answer in L1, above 0 and at most 2.
        keep_first: the first class stays the first, so that no served accuracy is lost; without it epsilon above 1 may serve any class.
    """

    phase: ClassVar[Phase] = Phase.ANSWER

    epsilon: float = 1.0
    keep_first: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 2:
            raise ValueError(f"{self.name}.epsilon must lie above 0 and be at most 2, found {self.epsilon}")

    def check(self, facts: ModelFacts) -> None:
        if facts.task is not Task.CLASSIFICATION or facts.outputs < 2:
            raise GuardError(
                f"{self.name} needs a model that answers probabilities; this one answers {facts.task.value} with "
                f"{facts.outputs} outputs. Round them by the release policy instead"
            )

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        if view.raw is None:
            raise GuardError(f"{self.name} runs after the model")
        some = view.raw.values[:, 0]
        return Marks(replace=(some == some) | (some != some))  # every row, also one of NaN

    def rewrite(self, xp: Any, rows: Rows, settings: Settings) -> Any:  # noqa: ARG002
        p = rows.answer
        found = toward(xp, p, self.target(xp, rows), self.epsilon, keep_first=self.keep_first)
        sound = xp.all((found >= -_SLACK) & (found <= 1.0 + _SLACK), axis=1, keepdims=True)  # not NaN, not infinite
        return xp.where(sound, found, 1.0 / p.shape[1])

    def target(self, xp: Any, rows: Rows) -> Any:
        """Another probability vector for each row, shape (rows, classes)."""
        raise NotImplementedError
