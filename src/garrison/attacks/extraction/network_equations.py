"""Network equations: a clone of a small network whose answers are equations in its parameters, solved by descent.

Tramer et al., "Stealing Machine Learning Models via Prediction APIs" (USENIX Security 2016), section 4.1.2: a multilayer perceptron
with one hidden layer, stolen with 1 to 5 questions for each unknown parameter. Log-probabilities minus their mean are the logits up to
a constant, so the clone meets them by least squares in double precision (L-BFGS, Liu and Nocedal 1989), from several starts of which
the one with the smallest error goes on. A clone that is wider than the model finds it more surely than one of its size. Rounded
answers are met by cross-entropy.

Invariant: the answers alone choose start and activation. Not covered: more hidden layers than one (the clone is then only a fit), images
that are better met by convolutions. For ReLU networks see `garrison.attacks.extraction.critical_points`, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from garrison.attacks.base import Attack, Goal
from garrison.attacks.checks import at_least
from garrison.attacks.exam import Loot
from garrison.attacks.extraction.equations import (
    SOFT_NEEDED,
    Basis,
    Observed,
    Questions,
    ask_rows,
    clone_of,
    constant,
    observe,
)
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts
from garrison.errors import MissingExtraError
from garrison.types import FloatArray

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

Activation = Literal["auto", "tanh", "relu", "logistic"]
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "logistic": torch.sigmoid,
}
_FIRST_SHARE = 0.1
_HISTORY = 50
_AT_ONCE = 100
_SOLVED = 1e-20


class NetworkEquations(Attack, frozen=True):
    """Meet a network's answers by a network with one hidden layer.

    Attributes:
        steps: most steps of the descent, of which each other start takes a tenth.
        hidden: units of the clone's hidden layer; more than the model has is better than fewer.
        activation: of the hidden layer; "auto" tries each.
        restarts: starts of each activation.
        questions: "uniform", "surrogate" or "mixed", three valid rows, which name one category of each feature that encodes one, to
            a uniform row.
    """

    name: ClassVar[str] = "network-equations"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    steps: int = 1500
    hidden: int = 32
    activation: Activation = "auto"
    restarts: int = 2
    questions: Questions = "mixed"

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "hidden", "restarts")

    def obstacle(self, facts: OracleFacts) -> str:
        return "" if facts.soft or facts.scores or facts.regression else SOFT_NEEDED

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        facts = oracle.facts
        found = observe(oracle, ask_rows(self.questions, rng, knowledge, facts, oracle.remaining))
        if found is None:
            return Loot(constant(facts))
        problem = Problem.of(found)
        kinds = sorted(_ACTIVATIONS) if self.activation == "auto" else [self.activation]
        fits = [Fit.random(problem, kind, self.hidden, rng) for kind in kinds for _ in range(self.restarts)]
        if len(fits) > 1:
            fits = [fit.descended(problem, max(1, int(_FIRST_SHARE * self.steps))) for fit in fits]
        best = min(fits, key=lambda fit: fit.loss).descended(problem, self.steps)
        return Loot(
            clone_of(lambda rows: best.values(problem, rows), soft=facts.soft),
            told={"unexplained": best.loss, "unknowns": float(best.inner.numel() + best.outer.numel())},
        )


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Answered rows, brought to a common scale.

    Attributes:
        x: (rows, features + 1), with a constant.
        z: (rows, outputs), brought to deviation 1.
        p: (rows, classes), what is met where the answers are not exact; None where they are.
    """

    basis: Basis
    x: torch.Tensor
    z: torch.Tensor
    scale: float
    p: torch.Tensor | None

    @classmethod
    def of(cls, found: Observed) -> Problem:
        exact = found.p is None or bool(found.exact.mean() > 0.5)
        x, z = (found.x[found.exact], found.z[found.exact]) if exact and found.p is not None else (found.x, found.z)
        basis, scale = Basis.over(x), float(z.std()) or 1.0
        goal = None if exact or found.p is None else torch.from_numpy(found.p / found.p.sum(axis=1, keepdims=True))
        return cls(basis, torch.from_numpy(basis.design(x)), torch.from_numpy(z / scale), scale, goal)

    def loss(self, said: torch.Tensor) -> torch.Tensor:
        """Of scaled values: squared error, up to a constant a row where they are log-probabilities; or the divergence."""
        if self.p is None:
            return ((said - self.z) ** 2).mean()
        return (self.p * (torch.log(self.p) - functional.log_softmax(self.scale * said, dim=1))).sum(dim=1).mean()


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A network with one hidden layer, and its loss."""

    kind: str
    inner: torch.Tensor
    outer: torch.Tensor
    loss: float

    @classmethod
    def random(cls, problem: Problem, kind: str, hidden: int, rng: np.random.Generator) -> Fit:
        inputs, outputs = problem.x.shape[1], problem.z.shape[1]
        inner = torch.from_numpy(rng.normal(size=(inputs, hidden)) / np.sqrt(inputs))
        outer = torch.from_numpy(rng.normal(size=(hidden + 1, outputs)) / np.sqrt(hidden))
        return cls(kind, inner, outer, np.inf)

    def descended(self, problem: Problem, steps: int) -> Fit:
        """The same network after at most so many steps of L-BFGS."""
        with torch.inference_mode(mode=False):
            inner, outer = self.inner.clone().requires_grad_(), self.outer.clone().requires_grad_()
            optimiser = torch.optim.LBFGS(
                [inner, outer],
                max_iter=min(steps, _AT_ONCE),
                history_size=_HISTORY,
                line_search_fn="strong_wolfe",
                tolerance_change=1e-16,
                tolerance_grad=1e-14,
            )

            def loss() -> torch.Tensor:
                optimiser.zero_grad()
                value = problem.loss(_values(self.kind, problem.x, inner, outer))
                value.backward()  # type: ignore[no-untyped-call]
                return value

            best = self
            for _ in range(0, steps, _AT_ONCE):
                optimiser.step(loss)  # type: ignore[no-untyped-call]
                with torch.no_grad():
                    reached = float(problem.loss(_values(self.kind, problem.x, inner, outer)))
                if not reached < best.loss:
                    break
                best = Fit(self.kind, inner.detach().clone(), outer.detach().clone(), reached)
                if reached < _SOLVED:
                    break
        return best

    def values(self, problem: Problem, rows: FloatArray) -> FloatArray:
        """Logits, or values, of rows (n, features)."""
        with torch.no_grad():
            said = _values(self.kind, torch.from_numpy(problem.basis.design(rows)), self.inner, self.outer)
        found: FloatArray = said.numpy() * problem.scale
        return found


def _values(kind: str, x: torch.Tensor, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    return _ACTIVATIONS[kind](x @ inner) @ outer[:-1] + outer[-1]
