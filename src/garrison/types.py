"""Frozen values that all rooms share. They hold data and no behaviour; arrays in them are never written to.

`RawScores` and `Released` are different types on purpose: only a RELEASE defense makes the second from the first, and
nothing else may leave the enclave.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.signedinteger[Any]]
BoolArray = npt.NDArray[np.bool_]

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}
DATATYPES: dict[np.dtype[Any], str] = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
"""Datatypes of the Open Inference Protocol, by numpy dtype and the other way round."""


FEATURE_SCORES = ("mahalanobis", "knn")
"""Out-of-distribution scores that look at a model's inner features, so that its graph must compute them: names of outputs and of defenses."""
SQUEEZED = "squeezed"
"""The output with the answers to squeezed copies of each row."""


class Phase(enum.IntEnum):
    """The order of the guard. A pipeline runs its defenses in this order and cannot be built without RELEASE."""

    ADMIT = 0
    INSPECT = 1
    ANSWER = 2
    RELEASE = 3
    RECORD = 4


class Task(enum.StrEnum):
    """What a model's answer means."""

    CLASSIFICATION = "classification"
    """One probability vector a row: non-negative, sums to 1."""
    SCORES = "scores"
    """One vector a row that is no probability vector (decision values, logits that the owner will not normalise)."""
    REGRESSION = "regression"
    """One or more real values a row."""


ANYBODY = "*"
"""In settings by caller: whoever is not named."""


class Caller(msgspec.Struct, frozen=True):
    """Who asks: the id of an API key, or the peer's address where no keys are used."""

    id: str


class Batch(msgspec.Struct, frozen=True, eq=False):
    """Rows of several requests, scored together. A struct, as one is made for every batch.

    Attributes:
        inputs: the model's inputs by name, each of shape (rows, ...), C-contiguous.
        request_of_row: shape (rows,), the index of the request that each row belongs to, non-decreasing.
        callers: one entry a request.
        remaining: one entry a request: the rows that the request's caller may still ask, -1 for no limit. What the
            caller's earlier requests in the same batch ask is not yet taken off.
        fresh: as `remaining`, of rows that the caller has not asked before; empty for no limits.
        worked: one entry a request: the rows that its proof of work pays for; empty where nobody is asked for proofs.
    """

    inputs: dict[str, Array]
    request_of_row: npt.NDArray[np.intp]
    callers: tuple[Caller, ...]
    remaining: tuple[int, ...]
    fresh: tuple[int, ...] = ()
    worked: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return int(self.request_of_row.shape[0])

    @property
    def requests(self) -> int:
        return len(self.callers)


class RawScores(msgspec.Struct, frozen=True, eq=False):
    """What the model computed, before any defense. Never leaves the enclave. A struct, as `Batch` is.

    Attributes:
        values: shape (rows, outputs): probabilities, scores or regression values, by the bundle's task.
        logits: shape (rows, classes), where the graph offers them.
        misinformation: log-probabilities of f' (shape (k, classes)) for the k rows asked for, or None where the bundle
            has no f'. Called only for the rows where it matters, unless the guard runs in constant time.
        feature_score: shape (rows, 1), one of `FEATURE_SCORES`, where the graph offers it: higher for inputs like the training data.
        squeezed: shape (rows, copies * outputs), the answers to squeezed copies of each row, one after the other, where the graph offers them (see
            `garrison.guard.squeezing`).
        again: the model's answers to any other rows, by the names of its inputs: shape (rows, outputs). Only where the chain runs in numpy.
    """

    values: FloatArray
    logits: FloatArray | None = None
    misinformation: Callable[[npt.NDArray[np.intp]], FloatArray] | None = None
    feature_score: FloatArray | None = None
    squeezed: FloatArray | None = None
    again: Callable[[dict[str, Array]], FloatArray] | None = None


class Released(msgspec.Struct, frozen=True, eq=False):
    """What may leave the enclave, one row per row of the batch. A struct, as `Batch` is.

    Attributes:
        outputs: answer tensors by name, each of shape (rows, ...).
        uncertain: shape (rows,), rows that the owner's policy answers with "uncertain" instead of a class.
    """

    outputs: dict[str, Array]
    uncertain: BoolArray = msgspec.field(default_factory=lambda: np.zeros(0, dtype=np.bool_))


@dataclass(frozen=True, slots=True, eq=False)
class InputFacts:
    """What one input tensor must look like.

    Attributes:
        name: the tensor's name.
        dtype: numpy dtype of the tensor.
        shape: shape of one row, without the batch dimension.
        low, high: smallest and largest allowed value, broadcastable to `shape`.
        may_be_missing: where NaN stands for "missing" and is allowed, broadcastable to `shape`.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    low: Array
    high: Array
    may_be_missing: BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class ModelFacts:
    """What the guard may know of a model, without seeing the model.

    Attributes:
        task: what the answer means.
        inputs: the model's inputs, in order.
        labels: the class labels; empty for regression.
        outputs: length of one row of `RawScores.values`.
        value_dtype: dtype of `RawScores.values`.
        has_logits, has_misinformation: what else the graph offers.
        feature_score: which of `FEATURE_SCORES` it offers; "" for none.
        has_squeezed: whether it offers `SQUEEZED`.
    """

    task: Task
    inputs: tuple[InputFacts, ...]
    labels: tuple[str, ...]
    outputs: int
    value_dtype: np.dtype[Any]
    has_logits: bool
    has_misinformation: bool
    feature_score: str = ""
    has_squeezed: bool = False


class DefenseSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of a chain of defenses, as it stands in a manifest or a plan.

    Attributes:
        name: the defense's name in the registry.
        shadow: the defense runs and is recorded, but changes nothing.
        parameters: the defense's own fields; unknown ones are an error when the chain is built.
    """

    name: str
    shadow: bool = False
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
