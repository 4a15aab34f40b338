"""Defenses that let two classes of a released answer change places, by a number that follows from the input and the owner's key.

They stand after the release policy and act on what it lets out, so that both forms of the guard run the same lines. They say no more than
the policy: an answer keeps its numbers, only the names of two classes are exchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from garrison.guard.base import Defense
from garrison.guard.defenses.release import OUTPUT_NAME
from garrison.types import Array, Batch, BoolArray, ModelFacts, Phase

logger = logging.getLogger(__name__)

CLASSES = "classes"

Numbers = npt.NDArray[np.int64]
Marks = Callable[[dict[str, Array]], Numbers]
"""Inputs by name -> one number a row: 0 for none, else by how many classes the answer is moved on."""


class RelabelDefense(Defense, frozen=True):
    """A defense that exchanges classes in released answers. It writes `marks`."""

    phase: ClassVar[Phase] = Phase.RELEASE
    needs_key: ClassVar[bool] = True

    def marks(self, facts: ModelFacts, key: bytes) -> Marks:
        """The rule for such a model under this key; made once."""
        raise NotImplementedError


def relabel(
    marks: Marks,
    batch: Batch,
    refused: Sequence[str | None],
    outputs: MutableMapping[str, Array],
    facts: ModelFacts,
    *,
    shadow: bool,
) -> BoolArray | None:
    """Let classes change places in the released answers of a batch, or only look where, in shadow.

    Returns:
        Rows whose answer is changed, or would be; shape (rows,). None where the rule raised: nothing of the batch may leave then.
    """
    try:
        numbers = _numbers(marks, batch, refused)
        if not shadow and outputs:
            exchange(outputs, numbers, facts)
    except Exception:
        logger.exception("a relabelling defense raised on a batch of %d requests; refusing all of them", batch.requests)
        return None
    found: BoolArray = numbers != 0
    return found


def _numbers(marks: Marks, batch: Batch, refused: Sequence[str | None]) -> Numbers:
    """One number a row; 0 for rows of refused requests, whose values may be anything."""
    if not any(refused):
        return marks(batch.inputs)
    kept = np.array([code is None for code in refused])[batch.request_of_row]
    numbers = np.zeros(batch.rows, dtype=np.int64)
    if kept.any():
        numbers[kept] = marks({name: x[kept] for name, x in batch.inputs.items()})
    return numbers


def exchange(outputs: MutableMapping[str, Array], numbers: Numbers, facts: ModelFacts) -> None:
    """The first class of each marked answer and the one `numbers` after it, around the end, change places.

    Args:
        outputs: released tensors by name, each (rows, ...). Changed ones are new arrays, since a released array may be the model's own.
        numbers: shape (rows,).
    """
    rows = np.flatnonzero(numbers)
    if not rows.size:  # nearly always, in a small batch
        return
    name = CLASSES if CLASSES in outputs else OUTPUT_NAME[facts.task]
    changed = outputs[name] = outputs[name].copy()
    if name == CLASSES:  # in order, largest first; their numbers stay as they are
        listed = changed[rows]
        first = listed[:, :1].copy()
        other = (first + numbers[rows, np.newaxis]) % facts.outputs
        changed[rows] = np.where(listed == other, first, np.where(listed == first, other, listed))
        return
    first = changed[rows].argmax(axis=1)
    other = (first + numbers[rows]) % facts.outputs
    changed[rows, first], changed[rows, other] = changed[rows, other], changed[rows, first]
