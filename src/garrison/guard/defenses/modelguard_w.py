"""ModelGuard-W (Tang et al., USENIX Security 2024): the answer farthest from f(x) within the budget, in closed form."""

from __future__ import annotations

from typing import Any, ClassVar

from garrison.guard.base import Rows
from garrison.guard.perturbing import Perturbing, first_of, moved, toward


class ModelguardW(Perturbing, frozen=True, kw_only=True):
    """Serve the vector of largest L2 distance from f(x) among those within the budget: against thieves who take answers as they are.

    The paper's problem is the maximum of a convex function, which lies in a corner of the feasible set; it asks a solver for each query. Here are the
    corners: the least likely class gains epsilon / 2, taken from the most likely ones; or the first class gains it, taken from the next ones. The
    farther one is served. No vector within the budget lies farther than epsilon / sqrt(2), which is reached wherever one class can give all of it and
    the first class need not stop it; elsewhere the served one may fall short of the best corner by a little (measured on the page).

    Does not stop: whoever reads the first class alone, or restores f(x).
    """

    name: ClassVar[str] = "modelguard-w"

    def target(self, xp: Any, rows: Rows) -> Any:
        p, mass = rows.answer, 0.5 * self.epsilon
        flattened = toward(xp, p, moved(xp, p, -p, mass), self.epsilon, keep_first=self.keep_first)
        if not self.keep_first:
            return flattened
        sharpened = moved(xp, p, xp.where(first_of(xp, p), p, -p), mass)
        nearer = _square(xp, flattened - p) < _square(xp, sharpened - p)
        return xp.where(nearer, sharpened, flattened)


def _square(xp: Any, step: Any) -> Any:
    return xp.sum(step * step, axis=1, keepdims=True)
