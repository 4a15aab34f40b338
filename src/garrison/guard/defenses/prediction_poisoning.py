"""Prediction poisoning by maximising angular deviation, MAD (Orekondy, Schiele and Fritz, ICLR 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

from garrison.guard.base import Rows
from garrison.guard.perturbing import Perturbing, first_of
from garrison.guard.surrogate import MOST_SEED, Gradients, gradients


def cosines(xp: Any, p: Any, g: Gradients) -> Any:
    """For each class j the cosine between the clone's gradients on the answer e_j and on p, times what all classes share; shape (rows, classes).

    The gradient of the cross-entropy on q is -G^T q = -J^T (q - surrogate's p), so the cosine's numerator is (e_j - p_s)^T J J^T (p - p_s). The
    paper maximises the squared distance of the normed gradients, which is 2 - 2 cos.
    """
    u = p - g.p
    turned, own = g.gram(xp, u), g.gram(xp, g.p)
    above = turned - xp.sum(g.p * turned, axis=1, keepdims=True)
    square = g.diagonal(xp) - 2.0 * own + xp.sum(g.p * own, axis=1, keepdims=True)
    return above / xp.sqrt(square)  # |J^T (e_j - p_s)|^2, at least the least of J J^T times |e_j - p_s|^2


class PredictionPoisoning(Perturbing, frozen=True, kw_only=True):
    """Answer on the way to that class whose gradient lies farthest from the true answer's.

    The paper's heuristic: of the corners of the simplex the one of largest angular deviation, then as far towards it as the budget allows. With
    `keep_first` this is its MAD-argmax. The gradients are those of `garrison.guard.surrogate`.

    Stops: little by itself; see the page. Does not stop: whoever reads the first class alone.

    Attributes:
        seed: of the surrogate; drawn at sealing where the owner gives none. Whoever knows it can tell to which class an answer was bent.
    """

    name: ClassVar[str] = "prediction-poisoning"
    needs: ClassVar[frozenset[str]] = frozenset({"projection"})

    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed <= MOST_SEED:
            raise ValueError(f"prediction-poisoning.seed must lie in 0 to {MOST_SEED}, found {self.seed}")

    def target(self, xp: Any, rows: Rows) -> Any:
        p = rows.answer
        g = gradients(xp, rows.signals["projection"], p.shape[1], self.seed, p.dtype)
        return xp.astype(first_of(xp, -cosines(xp, p, g)), p.dtype)
