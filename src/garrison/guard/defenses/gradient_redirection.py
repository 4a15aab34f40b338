"""Gradient redirection, GRAD2 (Mazeika, Li and Forsyth, ICML 2022): bend the clone's gradient towards a chosen direction, exactly."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from garrison.guard.base import Rows
from garrison.guard.perturbing import Perturbing, moved
from garrison.guard.surrogate import MOST_SEED, Gradients, gradients

Direction = Literal["all-ones", "opposite"]


def scores(xp: Any, p: Any, g: Gradients, direction: Direction) -> Any:
    """G z, one number a class: how far an answer of this class moves the clone in the direction z; shape (rows, classes).

    A number that all classes share is left out: answers sum to 1, so it moves nothing.
    """
    match direction:
        case "all-ones":
            return g.all_ones(xp)
        case "opposite":
            return -g.gram(xp, p - g.p)


class GradientRedirection(Perturbing, frozen=True, kw_only=True):
    """Of all answers within the budget, the one whose gradient goes farthest in a direction that has nothing to do with the truth.

    max <G^T q, z> over the simplex and |q - f|_1 <= epsilon is a linear programme, and sorting the classes by G z solves it (the paper's theorem).
    With `keep_first` the solution is drawn back towards f until the first class holds; that is no longer the optimum. The gradients are those of
    `garrison.guard.surrogate`.

    Stops: little by itself; see the page. Does not stop: whoever reads the first class alone.

    Attributes:
        seed: of the surrogate; drawn at sealing where the owner gives none.
        direction: "all-ones", one z for all inputs, which the paper found best; or "opposite", against the true gradient (its Min-IP).
    """

    name: ClassVar[str] = "gradient-redirection"
    needs: ClassVar[frozenset[str]] = frozenset({"projection"})

    seed: int
    direction: Direction = "all-ones"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed <= MOST_SEED:
            raise ValueError(f"gradient-redirection.seed must lie in 0 to {MOST_SEED}, found {self.seed}")

    def target(self, xp: Any, rows: Rows) -> Any:
        p = rows.answer
        g = gradients(xp, rows.signals["projection"], p.shape[1], self.seed, p.dtype)
        return moved(xp, p, scores(xp, p, g, self.direction), 0.5 * self.epsilon)
