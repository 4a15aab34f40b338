"""The last look at an answer before it leaves: finite, a probability vector where it must be one, classes that the model has (OWASP ML09).

A model that was sealed well can still answer nonsense to one input: a division by zero, a logarithm of nothing, an overflow in half precision. Such an
answer is not signed and not sent: the request is refused with the code `answer.invalid`, its rows are charged, and no other request of its batch is harmed.

Not checked: whether the answer is right. Where only labels are released, the model's own answer is looked at too, where this form of the guard has it.
"""

from __future__ import annotations

import logging

import numpy as np

from garrison.errors import InvalidAnswerError
from garrison.guard.base import ReleaseDefense
from garrison.guard.defenses.release import OUTPUT_NAME
from garrison.guard.pipeline import Progress
from garrison.types import Array, BoolArray, ModelFacts, Released, Task

logger = logging.getLogger(__name__)

CLASSES = "classes"
SUM_TOLERANCE = 1e-3
"""By how much probabilities may miss 1 in all, before what rounding takes from each."""
_HALF_TOLERANCE = 1e-2
"""In half precision."""
_FEW_NUMBERS = 512
"""Up to so many are looked at in plain Python: numpy's calls, whose code has left the processor's caches while the model ran, take longer."""
TOLD = "the model gave no answer to this input that may leave: not finite, no probabilities, or no class that it has"


class OutputCheck:
    """Looks at the answers of one model.

    Args:
        release: says what leaves, and how it is rounded.
        facts: what is known of the model.
    """

    def __init__(self, release: ReleaseDefense, facts: ModelFacts) -> None:
        self._name = OUTPUT_NAME[facts.task]
        self._outputs = facts.outputs
        self._probabilities = facts.task is Task.CLASSIFICATION
        self._says = {name: shape for name, _, shape in release.describe_outputs(facts)}
        self._nothing_else = self._probabilities and list(self._says) == [self._name]
        decimals = getattr(release, "decimals", None)
        self._off = _HALF_TOLERANCE if facts.value_dtype.itemsize < 4 else SUM_TOLERANCE
        self._rounded = 0.0 if decimals is None else 0.5 * 10.0**-decimals

    def __call__(self, progress: Progress, released: Released) -> None:
        """Refuse the requests of a batch whose answers must not leave."""
        if None not in progress.refused or self._is_right(released, progress.batch.rows):
            return
        wrong = self.wrong(released, len(progress.batch.request_of_row))
        if self._name not in self._says and progress.raw is not None:
            wrong = wrong | self._wrong_values(progress.raw.values, 0.0)
        if not np.count_nonzero(wrong):
            return
        for number in np.unique(progress.batch.request_of_row[wrong]).tolist():
            if progress.refused[number] is None:
                progress.refused[number] = InvalidAnswerError.code
                progress.detail[number] = TOLD
                logger.warning("the model's answer to a request is not one that may leave; it is refused")

    def _is_right(self, released: Released, rows: int) -> bool:
        """Whether all may leave, as nearly always. Only where that is seen in plain Python; False says nothing."""
        found = released.outputs.get(self._name) if self._nothing_else and len(released.outputs) == 1 else None
        if found is None or found.size > _FEW_NUMBERS or found.shape != (rows, *self._says[self._name]):
            return False
        least, most, smallest = self._range(found.shape[1], self._rounded)
        return all(least <= sum(row) <= most and min(row) >= smallest for row in found.tolist())

    def _range(self, columns: int, rounded: float) -> tuple[float, float, float]:
        """Least and largest sum of the probabilities that are told of a row, and the least of one."""
        off = self._off + rounded * columns
        return 1.0 - off if columns == self._outputs else -np.inf, 1.0 + off, -self._off

    def wrong(self, released: Released, rows: int) -> BoolArray:
        """Rows whose answers must not leave; shape (rows,)."""
        if released.outputs.keys() != self._says.keys():
            return np.ones(rows, np.bool_)
        wrong = np.zeros(rows, np.bool_)
        for name, found in released.outputs.items():
            if found.shape != (rows, *self._says[name]):
                return np.ones(rows, np.bool_)
            if name == CLASSES:
                wrong |= ((found < 0) | (found >= self._outputs)).any(axis=1)
            elif name == self._name:
                wrong |= self._wrong_values(found, self._rounded)
            else:
                wrong |= ~_finite(found)
        return wrong

    def _wrong_values(self, values: Array, rounded: float) -> BoolArray:
        """Each comparison is false for NaN, and so is that of a sum that an infinity or a NaN went into."""
        if not self._probabilities:
            return ~_finite(values)
        least, most, smallest = self._range(values.shape[1], rounded)
        if values.size <= _FEW_NUMBERS:
            rows = values.tolist()
            return np.array([not (least <= sum(row) <= most and min(row) >= smallest) for row in rows], np.bool_)
        with np.errstate(invalid="ignore"):  # an infinity less another one
            sums = values.sum(axis=1, dtype=np.float64)
        right = (sums >= least) & (sums <= most) & (values.min(axis=1) >= smallest)
        return np.asarray(~right, np.bool_)


def _finite(values: Array) -> BoolArray:
    """Shape (rows,)."""
    return np.asarray(np.isfinite(values.reshape(len(values), -1)).all(axis=1), np.bool_)
