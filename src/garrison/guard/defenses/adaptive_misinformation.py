"""Adaptive Misinformation (Kariyappa and Qureshi, CVPR 2020), diverse and deterministic per input.

In-distribution inputs are answered with f(x), out-of-distribution ones with a wrong answer m(x):

    alpha(x) = 1 / (1 + exp(nu (confidence(x) - tau)))                 (eq. 4 of the paper)
    answer   = (1 - alpha) f(x) + alpha m(x)                           (eq. 5)

The paper answers with f'(x), a model trained to be wrong. Such an f' collapses to a few classes, which is a fingerprint, and
it puts the least mass on the true class, which gives that class away. Here f' only *weights* the wrong classes; the owner's
key picks a class for each input, f's own choice as often as chance, and shapes the rest like an honest answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from garrison.errors import GuardError
from garrison.guard.base import Marks, Noise, RowDefense, Settings, View, raise_not_tighter
from garrison.types import FloatArray, ModelFacts, Phase, Task

NEGLIGIBLE = 1e-6
"""Rows with a smaller alpha keep f(x) as it is, rows with a larger one than 1 minus this get m(x): the change would be below
single precision's rounding."""
_BAND = math.log(1.0 / NEGLIGIBLE - 1.0)
MOST_NATS = 85.0
"""Weights are kept within exp of this, which single precision holds."""


def alpha(xp: Any, confidence: Any, tau: float, nu: float) -> Any:
    """Share of misinformation in [0, 1], shape (rows,), or one number with `math` as `xp`.

    The logistic function by tanh, which cannot overflow.
    """
    return 0.5 - 0.5 * xp.tanh((0.5 * nu) * (confidence - tau))


def chosen_class(f: list[float], wrong: list[float], gumbel: list[float]) -> int:
    """The class that the wrong answer names.

    It is drawn in proportion to f' (Gumbel-max with keyed noise), but f's own first choice at the share of one class among all: if
    it never came, asking a few dozen near-duplicates would show it by its absence.

    Args:
        f: f(x).
        wrong: log f'(x); NaN, of an input that was not checked, weighs nothing.
        gumbel: keyed Gumbel noise.
    """
    scores = [weight + noise if weight == weight else noise for weight, noise in zip(wrong, gumbel, strict=True)]
    own = f.index(max(f))
    scores[own] = gumbel[own] - math.log(len(f))
    return scores.index(max(scores))


def chosen_classes(f: FloatArray, wrong: FloatArray, gumbel: FloatArray) -> npt.NDArray[np.intp]:
    """`chosen_class` for many rows, of arrays of shape (rows, classes)."""
    scores = np.where(np.isnan(wrong), 0.0, wrong) + gumbel
    own, every = first_choices(f), np.arange(len(f))
    scores[every, own] = gumbel[every, own] - math.log(f.shape[1])
    found: npt.NDArray[np.intp] = scores.argmax(axis=1)
    return found


def first_choices(f: FloatArray) -> npt.NDArray[np.intp]:
    """The place of each row's largest entry, as `f.index(max(f))` of a list has it."""
    own: npt.NDArray[np.intp] = np.where(np.isnan(f), -math.inf, f).argmax(axis=1)
    own[np.isnan(f[:, 0])] = 0
    return own


def shares(total: Any, largest: Any, ratio: Any, slip: Any = 0.0) -> tuple[Any, Any]:
    """What makes probabilities of weights: the factor for each weight, and the probability of one class more, above all of them.

    Args:
        total: the sum of the weights, a number or one a row.
        largest: the largest weight.
        ratio: p2 / p1, below 1.
        slip: by how much the sum of the probabilities is to miss 1.
    """
    scale = ratio / largest
    top = (1.0 + slip) / (1.0 + scale * total)
    return scale * top, top


def between(share: float, quantiles: tuple[float, ...]) -> float:
    """The quantile function of rising, evenly spaced quantiles: linear in between. `share` lies in [0, 1]."""
    place = share * (len(quantiles) - 1)
    start = min(int(place), len(quantiles) - 2)
    return quantiles[start] + (place - start) * (quantiles[start + 1] - quantiles[start])


def mix(f: Any, m: Any, a: Any) -> Any:
    """(1 - alpha) f + alpha m, of numbers or arrays."""
    return (1.0 - a) * f + a * m


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
        return _BAND / self.nu

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
        rounding = 0.5 * float(np.finfo(facts.value_dtype).eps)

        def draw(rng: np.random.Generator, rows: int) -> FloatArray:
            third = self.tail_scale / math.sqrt(3.0)  # of them make the log of a weight
            gumbel, nats = rng.gumbel(size=(rows, classes)), third * rng.normal(size=(rows, classes - 1))
            weights = np.exp(np.clip(nats, -MOST_NATS, MOST_NATS))
            slips = rounding * rng.normal(size=(rows, 1))
            return np.concatenate([gumbel, weights, slips], axis=1).astype(np.float32)

        return draw

    def settings(self, facts: ModelFacts) -> Settings:
        return {"sure": np.asarray(self.tau + self._band, facts.value_dtype)}

    @property
    def every_row(self) -> bool:
        return self.constant_time

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        return Marks(replace=~(view.signals["confidence"] > settings["sure"]))  # NaN fails closed

    def glance(self, view: View, settings: Settings) -> Mapping[str, FloatArray] | None:
        if self.constant_time:
            return None
        sure = settings["sure"].item()
        for confidence in view.signals["confidence"].tolist():
            if not confidence > sure:  # nor NaN
                return None
        return {}

    def named(self, f: list[float], wrong: list[float], gumbel: list[float], table: FloatArray) -> int:  # noqa: ARG002
        """The class that the new answer of one row names; variants of this defense differ here.

        Args:
            f: f(x).
            wrong: log f'(x).
            gumbel: keyed Gumbel noise of this input.
            table: keyed noise, the same for all inputs; its rows begin with Gumbel noise, one number a class.
        """
        return chosen_class(f, wrong, gumbel)

    def named_rows(
        self,
        f: FloatArray,
        wrong: FloatArray,
        gumbel: FloatArray,
        table: FloatArray,  # noqa: ARG002
    ) -> npt.NDArray[np.intp]:
        """`named` for many rows, of arrays of shape (rows, classes): the same classes."""
        return chosen_classes(f, wrong, gumbel)

    def redraw(
        self, answer: list[float], wrong: list[float], signals: Mapping[str, float], noise: Noise
    ) -> list[float]:
        """m(x) says nothing of f(x) and looks like an honest answer.

        The weight of a class is the product of three numbers of the table, and the margin is drawn between the quantiles, so that no two
        inputs get the same numbers: numbers that come back would tell misinformation from honest answers. The largest entry, the last,
        changes places with that of the class drawn. So neither f nor f' shapes the rest of the answer, and no rank of it tells where the
        truth is. The sum misses 1 by as much as that of a model, which computes in single precision: a better one would tell.
        """
        f, confidence, classes = answer, signals["confidence"], len(answer)
        gumbel, a, b, c = [noise.table[number].tolist() for number in noise.picks]
        weights = [x * y * z for x, y, z in zip(a[classes:-1], b[classes:-1], c[classes:-1], strict=True)]
        factor, top = shares(sum(weights), max(weights), math.exp(-between(noise.uniform, self.margins)), gumbel[-1])
        m = [factor * weight for weight in weights]
        chosen = self.named(f, wrong, gumbel[:classes], noise.table)
        m.append(top)
        m[chosen], m[-1] = top, m[chosen]
        near = confidence >= self.tau - self._band  # not NaN
        if not near and not self.constant_time:
            return m
        share = alpha(math, confidence, self.tau, self.nu)
        mixed = [mix(honest, other, share) for honest, other in zip(f, m, strict=True)]
        return mixed if near else m

    def redraw_rows(
        self, answer: FloatArray, wrong: FloatArray, signals: Mapping[str, FloatArray], noise: Sequence[Noise]
    ) -> FloatArray:
        every, classes = np.arange(len(answer)), answer.shape[1]
        picked = noise[0].table[[one.picks for one in noise]].astype(np.float64)
        gumbel, slips = picked[:, 0, :classes], picked[:, 0, -1]
        weights = picked[:, 1, classes:-1] * picked[:, 2, classes:-1] * picked[:, 3, classes:-1]
        margins = [between(one.uniform, self.margins) for one in noise]
        # Sums and exp in lists, see `RowDefense.redraw_rows`.
        totals, e = (np.array(x) for x in ([sum(row) for row in weights.tolist()], [math.exp(-one) for one in margins]))
        factor, top = shares(totals, weights.max(axis=1), e, slips)
        m = np.concatenate([factor[:, np.newaxis] * weights, top[:, np.newaxis]], axis=1)
        chosen = self.named_rows(answer, wrong, gumbel, noise[0].table)
        m[:, -1] = m[every, chosen]
        m[every, chosen] = top
        near = signals["confidence"] >= self.tau - self._band
        if not np.count_nonzero(near) and not self.constant_time:
            return m
        share = np.array([alpha(math, one, self.tau, self.nu) for one in signals["confidence"].tolist()])
        return np.where(near[:, np.newaxis], mix(answer, m, share[:, np.newaxis]), m)

    def check_tightened(self, signed: Self) -> None:
        if self.tau < signed.tau:
            raise_not_tighter(self.name, f"tau must be at least {signed.tau}, found {self.tau}")
        if self != type(signed)(**{f: getattr(signed, f) for f in signed.__struct_fields__} | {"tau": self.tau}):
            raise_not_tighter(self.name, "only tau can be raised")
