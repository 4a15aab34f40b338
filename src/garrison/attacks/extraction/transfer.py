"""The rows that a thief has asked so far, with what was answered.

Invariant: every row asked stays, in the order of asking; only rows with an answer that names a class are learnt from.
"""

from __future__ import annotations

import numpy as np

from garrison.attacks.extraction.knockoff import targets_of
from garrison.attacks.extraction.students import Student
from garrison.attacks.oracle import Labels, MeteredOracle
from garrison.types import Array, BoolArray, FloatArray


class TransferSet:
    """Asks and remembers.

    Attributes:
        x: (rows, *shape), asked so far.
        targets: (rows, classes), what a clone is trained towards; zero where nothing usable was answered.
        labels: (rows,), -1 where there was no answer.
        answered: (rows,), whether a usable answer came.
    """

    def __init__(self, oracle: MeteredOracle) -> None:
        facts = oracle.facts
        self.x: Array = np.zeros((0, *facts.shape), facts.dtype)
        self.targets: FloatArray = np.zeros((0, facts.classes))
        self.labels: Labels = np.zeros(0, np.int64)
        self.answered: BoolArray = np.zeros(0, np.bool_)
        self._oracle = oracle

    def __len__(self) -> int:
        return len(self.x)

    def ask(self, x: Array) -> slice:
        """Ask rows (n, *shape), in their order, as far as the budget goes; where they now stand."""
        x = x[: self._oracle.remaining].astype(self.x.dtype, copy=False)
        first = len(self)
        if len(x):
            answers = self._oracle.query(x)
            self.x = np.concatenate([self.x, x])
            self.targets = np.concatenate([self.targets, targets_of(answers, self.targets.shape[1])])
            self.labels = np.concatenate([self.labels, answers.labels])
            self.answered = np.concatenate([self.answered, answers.usable])
        return slice(first, len(self))

    def usable(self) -> tuple[Array, FloatArray]:
        """Rows and targets to learn from."""
        return self.x[self.answered], self.targets[self.answered]

    def labels_or(self, student: Student) -> Labels:
        """What the service called each row; where it said nothing usable, what the student calls it."""
        guessed = student.probabilities(self.x).argmax(axis=1)
        return np.where(self.answered & (self.labels >= 0), self.labels, guessed).astype(np.int64)
