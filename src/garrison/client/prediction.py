"""What a service predicted, as a client sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from garrison.errors import ServiceError
from garrison.types import Array, BoolArray, FloatArray

CLASSES = "classes"
PROBABILITIES = "probabilities"
_VECTORS = (PROBABILITIES, "scores")


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Answers to the rows that were asked, in order.

    Attributes:
        outputs: what the service released, by name, each (rows, ...).
        labels: the model's class labels; empty for regression.
        uncertain: shape (rows,), rows that the owner's policy answers with "uncertain".
        proved: whether each answer's signature was checked. It says who answered what, not that the answer is f(x): a guard
            may have answered with misinformation.
        model, model_version: who answered.
        attested: whether it was asked under seal, and the key that signed belongs to an enclave that the client's policy accepts.
        proofs: the signed statement of each request: keep it, and `garrison ledger find` shows whether the operator wrote the answer down.
    """

    outputs: dict[str, Array]
    labels: tuple[str, ...]
    uncertain: BoolArray
    proved: bool
    model: str
    model_version: str
    attested: bool = False
    proofs: tuple[bytes, ...] = ()

    @property
    def rows(self) -> int:
        return int(self.uncertain.shape[0])

    @property
    def probabilities(self) -> FloatArray | None:
        """Shape (rows, classes), rounded where the policy rounds; None where the service does not release whole vectors."""
        return None if CLASSES in self.outputs else self.outputs.get(PROBABILITIES)

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """The number of the first class of each row, shape (rows,).

        Raises:
            ServiceError: the model has no classes.
        """
        if CLASSES in self.outputs:
            return self.outputs[CLASSES].reshape(self.rows, -1)[:, 0].astype(np.int64)
        for name in _VECTORS:
            if name in self.outputs:
                first: npt.NDArray[np.int64] = self.outputs[name].argmax(axis=1).astype(np.int64)
                return first
        raise ServiceError(f"this model has no classes; it answers {', '.join(self.outputs)}")

    @property
    def first_values(self) -> FloatArray | None:
        """The probability of the first class of each row, shape (rows,); None where it is not released."""
        values = self.outputs.get(PROBABILITIES)
        return None if values is None else values.max(axis=1)

    @property
    def class_labels(self) -> tuple[str, ...]:
        """The label of each row's first class; its number where the model has no labels."""
        return tuple(self.labels[k] if k < len(self.labels) else str(k) for k in self.classes.tolist())


def join(parts: Sequence[Prediction]) -> Prediction:
    """The predictions of consecutive requests as one.

    Raises:
        ServiceError: the parts do not fit: another version answered in between.
    """
    first = parts[0]
    if any(part.model_version != first.model_version or part.outputs.keys() != first.outputs.keys() for part in parts):
        raise ServiceError("the service changed its model between two requests; ask again")
    outputs = {name: np.concatenate([part.outputs[name] for part in parts]) for name in first.outputs}
    return Prediction(
        outputs,
        first.labels,
        np.concatenate([part.uncertain for part in parts]),
        all(part.proved for part in parts),
        first.model,
        first.model_version,
        all(part.attested for part in parts),
        tuple(proof for part in parts for proof in part.proofs),
    )
