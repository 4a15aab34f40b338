"""One stream of questions, shared by trials that ask the same rows.

A thief with 5,000 queries first asks the rows that a thief with 500 asks, and a thief who reads labels alone asks the same rows
as one who reads probabilities. So the service is asked once and each trial is charged by its own meter.

Invariant: rows are replayed only while a trial asks exactly what was asked at that place before; from the first difference on the
service is asked. So an attack that repeats a question gets what the service says to the repetition.
"""

from __future__ import annotations

import numpy as np

from garrison.attacks.oracle import Answers, Oracle
from garrison.errors import RefusedError
from garrison.types import Array


class SharedStream:
    """Replays what was asked before, place by place.

    Attributes:
        asked: rows that the service itself was asked.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.facts = oracle.facts
        self.asked = 0
        self._oracle = oracle
        self._x: list[Array] = []
        self._answers: list[Answers | RefusedError] = []
        self._place = 0

    def rewind(self) -> SharedStream:
        """Begin another trial."""
        self._place = 0
        return self

    def query(self, x: Array) -> Answers:
        """One request; a request that was asked at this place before is answered, or refused, from memory."""
        place = self._place
        if place == len(self._x) or not np.array_equal(self._x[place], x, equal_nan=x.dtype.kind == "f"):
            del self._x[place:], self._answers[place:]
            self.asked += len(x)
            self._answers.append(self._ask(x))
            self._x.append(x)
        self._place += 1
        found = self._answers[place]
        if isinstance(found, RefusedError):
            raise found
        return found

    def _ask(self, x: Array) -> Answers | RefusedError:
        """A refusal is an answer; what failed is raised and will be asked again."""
        try:
            return self._oracle.query(x)
        except RefusedError as refusal:
            return refusal
