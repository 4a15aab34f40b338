"""What several tactics need: a meter around what they make, and answers brought back into the asked order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from garrison.attacks.oracle import Answers, MeteredOracle, Oracle, OracleFacts
from garrison.types import Array, FloatArray


def nearest(seen: Oracle, behind: MeteredOracle, rows_a_question: int = 1) -> MeteredOracle:
    """The meter that the attack is given: as many questions as the one behind it can pay for."""
    return MeteredOracle(seen, behind.remaining // rows_a_question)


def needs_probabilities(facts: OracleFacts) -> str:
    """Why a restorer cannot be used; "" where it can."""
    return "" if facts.soft else "there are no probabilities to restore: the service releases labels alone"


class Within:
    """The meter behind a tactic, asked for no more than it has left: a refused request that was asked again row by row used more than it was long."""

    def __init__(self, oracle: MeteredOracle) -> None:
        self.facts = oracle.facts
        self._oracle = oracle

    def query(self, x: Array) -> Answers:
        return self._oracle.query_within(x)

    def query_as(self, x: Array, account: int) -> Answers:
        """`query` from an account."""
        return self._oracle.query_within(x, account=account)


class Restored:
    """Turns the answered probabilities into what a restorer takes the model's own to be; the first class follows them."""

    def __init__(self, oracle: MeteredOracle, restore: Callable[[FloatArray], FloatArray]) -> None:
        self.facts = oracle.facts
        self._oracle, self._restore = oracle, restore

    def query(self, x: Array) -> Answers:
        found = self._oracle.query_within(x)
        if found.probabilities is None or not found.usable.any():
            return found
        p = found.probabilities.astype(np.float64)
        p[found.usable] = self._restore(p[found.usable])
        labels = np.where(found.usable, np.nan_to_num(p).argmax(axis=1), found.labels)
        return Answers(labels, p, found.refused, found.uncertain, found.values)


def interleaved(parts: Sequence[Answers], places: npt.NDArray[np.intp]) -> Answers:
    """Answers of several requests in the order of the question.

    Args:
        parts: one after the other.
        places: for each of their rows the place that it has in the question; each place once.
    """
    order = np.argsort(places)

    def joined(arrays: list[Array]) -> Array:
        found: Array = np.concatenate(arrays)[order]
        return found

    def vectors(arrays: list[FloatArray | None]) -> FloatArray | None:
        there = [array for array in arrays if array is not None]
        return joined(there) if len(there) == len(arrays) else None

    return Answers(
        joined([part.labels for part in parts]),
        vectors([part.probabilities for part in parts]),
        joined([part.refused for part in parts]),
        joined([part.uncertain for part in parts]),
        vectors([part.values for part in parts]),
    )
