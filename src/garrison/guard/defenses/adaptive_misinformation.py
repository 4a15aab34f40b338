"""Adaptive Misinformation (Kariyappa and Qureshi, CVPR 2020), diverse and deterministic per input.

In-distribution inputs are answered with f(x), out-of-distribution ones with a wrong answer m(x):

    alpha(x) = 1 / (1 + exp(nu (confidence(x) - tau)))                 (eq. 4 of the paper)
    answer   = (1 - alpha) f(x) + alpha m(x)                           (eq. 5)

The paper answers with f'(x), a model trained to be wrong. Such an f' collapses to a few classes, which is a fingerprint, and
it puts the least mass on the true class, which gives that class away. Here f' only *weights* the wrong classes; the owner's
key picks one of them for each input, never f's own choice, and shapes the rest like an honest answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np

from garrison.errors import GuardError
from garrison.guard.base import Marks, Noise, RowDefense, Rows, Settings, View, raise_not_tighter
from garrison.types import FloatArray, ModelFacts, Phase, Task

NEGLIGIBLE = 1e-6
"""Rows with a smaller alpha keep f(x) as it is, rows with a larger one than 1 minus this get m(x): the change would be below
single precision's rounding."""


def alpha(xp: Any, confidence: Any, tau: float, nu: float) -> Any:
    """Share of misinformation, shape (rows,), in [0, 1]. The logistic function by tanh, which cannot overflow."""
    return 0.5 - 0.5 * xp.tanh((0.5 * nu) * (confidence - tau))


def misinform(xp: Any, f: Any, wrong: Any, gumbel: Any, template: Any) -> Any:
    """An answer that says nothing of f(x) and looks like an honest one, shape (rows, classes).

    The class is drawn in proportion to f' (Gumbel-max with keyed noise), but f's own first choice at the share of one class
    among all: if it never came, asking a few dozen near-duplicates would show it by its absence. What each class gets comes from
    a keyed template, whose largest entry, the last, changes places with that of the class drawn. So neither f nor f' shapes the
    rest of the answer, and no rank of it tells where the truth is.

    Args:
        f: f(x), shape (rows, classes).
        wrong: log f'(x), shape (rows, classes).
        gumbel: keyed Gumbel noise, shape (rows, classes).
        template: see `templates`, shape (rows, classes).
    """
    classes = f.shape[1]
    numbers = xp.arange(classes)
    known = xp.where(f == f, f, -math.inf)  # NaN is not itself
    own_choice = numbers == xp.argmax(known, axis=1, keepdims=True)
    weights = xp.where(wrong == wrong, wrong, 0.0)  # of an input that was not checked
    score = xp.where(own_choice, -math.log(classes), weights) + gumbel
    chosen = numbers == xp.argmax(score, axis=1, keepdims=True)
    displaced = xp.sum(xp.where(chosen, template, 0.0), axis=1, keepdims=True)
    return xp.where(chosen, template[:, -1:], xp.where(numbers == classes - 1, displaced, template))


def templates(xp: Any, rest: Any, margin: Any) -> Any:
    """Probability vectors whose largest entry is the last, shape (rows, classes).

    Args:
        rest: log-probabilities of the other classes, up to a constant, shape (rows, classes - 1).
        margin: log(p1 / p2), above 0, shape (rows, 1).
    """
    top = xp.max(rest, axis=1, keepdims=True) + margin
    e = xp.exp(xp.concat([rest, top], axis=1) - top)
    return e / xp.sum(e, axis=1, keepdims=True)


def between(xp: Any, share: Any, quantiles: tuple[float, ...]) -> Any:
    """The quantile function of rising, evenly spaced quantiles: linear in between, shape (rows, 1). `share` lies in [0, 1]."""
    starts = np.arange(len(quantiles) - 1, dtype=np.float32)
    rises = np.diff(np.asarray(quantiles, np.float32))
    steps = xp.clip(len(starts) * xp.expand_dims(share, axis=1) - xp.asarray(starts), 0.0, 1.0)
    return quantiles[0] + xp.sum(steps * xp.asarray(rises), axis=1, keepdims=True)


def mix(xp: Any, f: Any, m: Any, a: Any) -> Any:
    """(1 - alpha) f + alpha m; `a` has shape (rows,)."""
    share = xp.expand_dims(a, axis=1)
    return (1.0 - share) * f + share * m


class AdaptiveMisinformation(RowDefense, frozen=True):
    """Answer out-of-distribution inputs wrongly.

    Stops: clones trained on surrogate data. Does not stop: attackers with in-distribution data, nor those who start from it
    (JBDA). Honest inputs of low confidence are answered wrongly too; tau bounds how many.

    Attributes:
        tau: threshold on the signal `confidence`; calibrated to a stated benign loss, never a constant.
        nu: steepness; 1,000 is a hard switch.
        tail_scale: standard deviation of an honest answer's log-probabilities but the largest, in nats; calibrated.
        margins: rising quantiles of log(p1 / p2) of honest answers, in nats; the keyed margin is drawn between them.
        constant_time: compute m for every row, so that the time of a batch does not tell how many were misinformed.
    """

    name: ClassVar[str] = "adaptive-misinformation"
    phase: ClassVar[Phase] = Phase.ANSWER
    needs: ClassVar[frozenset[str]] = frozenset({"confidence"})
    needs_key: ClassVar[bool] = True
    adjustable: ClassVar[frozenset[str]] = frozenset({"tau"})
    draws: ClassVar[bool] = True

    tau: float
    nu: float = 1000.0
    tail_scale: float = 3.0
    margins: tuple[float, ...] = (1.0, 3.0, 6.0)
    constant_time: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.tau):
            raise ValueError(f"adaptive-misinformation.tau must be finite, found {self.tau}")
        if not 0 < self.nu < math.inf or not 0 < self.tail_scale < math.inf:
            raise ValueError("adaptive-misinformation: nu and tail_scale must be above 0 and finite")
        if len(self.margins) < 2 or not all(0 < m < math.inf for m in self.margins):
            raise ValueError("adaptive-misinformation.margins must be two at least, each above 0 and finite")
        if list(self.margins) != sorted(self.margins) or self.margins[0] == self.margins[-1]:
            raise ValueError(
                "adaptive-misinformation.margins must rise: equal ones would mark every misinformed answer"
            )

    @property
    def _band(self) -> float:
        """Distance from tau beyond which alpha is 0 or 1, but for a negligible rest."""
        return math.log(1.0 / NEGLIGIBLE - 1.0) / self.nu

    def check(self, facts: ModelFacts) -> None:
        if facts.task is not Task.CLASSIFICATION or facts.outputs < 3:
            raise GuardError(
                f"{self.name} needs a model that answers probabilities of at least 3 classes; this one answers "
                f"{facts.task.value} with {facts.outputs} outputs. Use reject-option or the release policy instead"
            )
        if not facts.has_misinformation:
            raise GuardError(f"{self.name} needs a misinformation model: run `garrison harden` before sealing")

    def noise_drawer(self, facts: ModelFacts) -> Callable[[np.random.Generator, int], FloatArray]:
        classes = facts.outputs

        def draw(rng: np.random.Generator, rows: int) -> FloatArray:
            columns = (rng.gumbel(size=(rows, classes)), rng.normal(size=(rows, classes - 1)))
            return np.concatenate(columns, axis=1).astype(np.float32)

        return draw

    def settings(self, facts: ModelFacts) -> Settings:
        return {"tau": np.asarray(self.tau, facts.value_dtype)}

    @property
    def every_row(self) -> bool:
        return self.constant_time

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        return Marks(replace=~(view.signals["confidence"] > settings["tau"] + self._band))  # NaN fails closed

    def rewrite(self, xp: Any, rows: Rows, settings: Settings) -> Any:
        if rows.noise is None:
            raise GuardError(f"{self.name} needs keyed noise")
        f, tau, confidence = rows.answer, settings["tau"], rows.signals["confidence"]
        m = misinform(xp, f, rows.wrong, *self.shape(xp, rows.noise, f.shape[1]))
        mixed = confidence >= tau - self._band  # again not NaN
        return xp.where(xp.expand_dims(mixed, axis=1), mix(xp, f, m, alpha(xp, confidence, tau, self.nu)), m)

    def shape(self, xp: Any, noise: Noise, classes: int) -> tuple[Any, Any]:
        """Gumbel noise and templates, each (rows, classes).

        A template adds three rows of the table and draws its margin between the quantiles, so that no two inputs get the same
        numbers: numbers that come back would tell misinformation from honest answers.
        """
        picks = noise.picks
        rest = (self.tail_scale / math.sqrt(3.0)) * xp.sum(picks[:, 1:, classes:], axis=1)
        template = templates(xp, rest, between(xp, noise.uniform, self.margins))
        return picks[:, 0, :classes], template

    def check_tightened(self, signed: Self) -> None:
        if self.tau < signed.tau:
            raise_not_tighter(self.name, f"tau must be at least {signed.tau}, found {self.tau}")
        if self != type(signed)(**{f: getattr(signed, f) for f in signed.__struct_fields__} | {"tau": self.tau}):
            raise_not_tighter(self.name, "only tau can be raised")
