"""How unlikely it is that a suspect agrees with the marks by chance.

Null hypothesis: the suspect does not depend on the owner's key. Then, whatever the suspect is, good or bad, and whatever inputs it is asked, which of
them are marked is drawn evenly, and so is the class that a marked one is moved to, among all classes but the one that is served without
a mark. Two tests follow, exact for any suspect, with no assumption of how often models err:

    ranks   of all classes that are not served of all inputs asked, each put in order by how far the suspect leans to it (its probability beside that of
            the served class): how high do the marked ones stand? The surprise of one is -log of the share that stands as high, 1 in the mean by
            chance. That the sum of m of them is so large has at most the probability min over t of (mean of exp(t surprise))^m / exp(t sum),
            by Chernoff; drawing inputs only once makes it smaller (Maclaurin's inequality).
    labels  of all inputs asked: on how many marked ones does the suspect name the marked class? It names another class than the served one on d of
            n inputs; of m marked ones a hypergeometric number is among these d, and one in K - 1 of them agrees.

The first needs probabilities and sees what a clone half remembers; the second takes labels. Where both can be had the smaller p-value counts twice
(Bonferroni).

Not covered: inputs that were picked by looking at the marks and at the suspect's answers, which make any p-value worthless; a suspect that is the
owner's own service, which agrees of course.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from garrison.types import BoolArray, FloatArray

Labels = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
_TILTS = tuple(0.05 * step for step in range(1, 31))
_SLICE = 256
"""So many tails are computed at once."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a suspect answered to marked and other inputs.

    Attributes:
        asked, marked: inputs that it answered, and how many of them are marked.
        differing: of those asked, on which it names another class than the one served without marks.
        named: marked ones on which it names the marked class.
        surprise: of the ranks of the marked classes, in the mean; 1 by chance, None where it answers labels alone.
        fidelity: share of the unmarked ones on which it names the served class; NaN without any.
        p_labels, p_ranks: p-values of the two tests; None for one that cannot be made.
        p: of both together.
    """

    asked: int
    marked: int
    differing: int
    named: int
    surprise: float | None
    fidelity: float
    p_labels: float
    p_ranks: float | None
    p: float


def agreement(
    served: Labels, numbers: Labels, labels: Labels, probabilities: FloatArray | None, classes: int
) -> Agreement:
    """Count and test; one entry an input that the suspect answered.

    Args:
        served: shape (n,), what the service answers without marks.
        numbers: shape (n,), 0 for an unmarked input, else by how many classes its answer is moved on.
        labels: shape (n,), what the suspect names.
        probabilities: shape (n, classes); None where there are none.
        classes: K, at least 2.
    """
    marked = numbers != 0
    moved = (served + numbers) % classes
    differs = labels != served
    named = int(np.count_nonzero(marked & (labels == moved)))
    counts = len(served), int(np.count_nonzero(marked)), int(np.count_nonzero(differs))
    p_labels = labels_p(*counts, named, classes)
    surprise = p_ranks = None
    if probabilities is not None:
        surprise, p_ranks = _ranks(served, numbers, probabilities, classes)
    both = p_labels if p_ranks is None else min(1.0, 2.0 * min(p_labels, p_ranks))
    others: BoolArray = ~marked
    fidelity = float(1.0 - differs[others].mean()) if others.any() else math.nan
    return Agreement(*counts, named, surprise, fidelity, p_labels, p_ranks, both)


def _ranks(served: Labels, numbers: Labels, probabilities: FloatArray, classes: int) -> tuple[float, float]:
    """Mean surprise of the marked classes, and its p-value."""
    p = np.nan_to_num(probabilities.astype(np.float64)).clip(min=0.0)
    every = (served[:, np.newaxis] + np.arange(classes)) % classes  # the served class first
    p = np.take_along_axis(p, every, axis=1)
    both = p[:, :1] + p[:, 1:]
    leans = np.divide(p[:, 1:], both, out=np.zeros_like(both), where=both > 0)
    order = np.sort(leans, axis=None)
    as_high = order.size - np.searchsorted(order, leans.ravel(), side="left").reshape(leans.shape)
    surprise = -np.log(as_high / order.size)
    rows = np.flatnonzero(numbers)
    if not len(rows):
        return 1.0, 1.0
    total = float(surprise[rows, numbers[rows] - 1].sum())
    flat = surprise.ravel()
    bounds = [len(rows) * math.log(np.exp(t * flat).mean()) - t * total for t in _TILTS]
    return total / len(rows), min(1.0, math.exp(min(bounds)))


def binomial_p(n: int, hits: int, rate: float) -> float:
    """P(X >= hits) of X ~ binomial(n, rate), with rate in (0, 1]."""
    return float(_tails(np.array([n]), hits, rate, _log_factorials(n))[0])


def labels_p(asked: int, marked: int, differing: int, named: int, classes: int) -> float:
    """P(X >= named) of X, the agreements where marks fall evenly on the inputs; see above."""
    if named <= 0:
        return 1.0
    logs = _log_factorials(asked)

    def choose(n: int, k: Counts) -> FloatArray:
        found: FloatArray = logs[n] - logs[k] - logs[n - k]
        return found

    d = np.arange(max(named, marked - (asked - differing)), min(marked, differing) + 1)
    shares = np.exp(choose(differing, d) + choose(asked - differing, marked - d) - choose(asked, np.array(marked)))
    parts = [
        shares[i : i + _SLICE] @ _tails(d[i : i + _SLICE], named, 1.0 / (classes - 1), logs)
        for i in range(0, len(d), _SLICE)
    ]
    return min(1.0, math.fsum(parts))


def _tails(n: Counts, hits: int, rate: float, logs: FloatArray) -> FloatArray:
    """P(X >= hits) of X ~ binomial(n, rate), for several n."""
    if hits <= 0:
        return np.ones(len(n))
    if rate >= 1.0:
        return (n >= hits).astype(np.float64)
    k = np.arange(hits, max(hits, int(n.max(initial=0))) + 1)
    rest = n[:, np.newaxis] - k
    terms = logs[n][:, np.newaxis] - logs[np.minimum(k, len(logs) - 1)] - logs[np.maximum(rest, 0)]
    terms = terms + k * math.log(rate) + rest * math.log1p(-rate)
    found: FloatArray = np.where(rest >= 0, np.exp(np.minimum(terms, 0.0)), 0.0).sum(axis=1).clip(max=1.0)
    return found


def _log_factorials(n: int) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979): claims over several suspects, with the chance of any false one bounded."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        found[i] = least
    return found
