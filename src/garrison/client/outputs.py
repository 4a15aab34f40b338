"""What a client demands of an answer's tensors before anybody sees them: those that the model's metadata names, finite, probabilities, known classes.

A proof says who answered. This says that the answer can be one of that model's.

Not checked: whether it is right. The metadata is the host's word, but for what a sealed conversation took from the attested manifest (labels, inputs, task).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from garrison.client.prediction import CLASSES, PROBABILITIES, Prediction
from garrison.errors import ServiceError
from garrison.protocol.oip_client import InferAnswer
from garrison.protocol.oip_metadata import ModelMetadata
from garrison.types import DATATYPES, Array, Task

SUM_TOLERANCE = 1e-3
_HALF_TOLERANCE = 1e-2
_MOST_DECIMALS = 6


def prediction_of(
    answer: InferAnswer,
    rows: int,
    metadata: ModelMetadata,
    proof: bytes,
    *,
    proved: bool,
    attested: bool = False,
    asked: Sequence[str] = (),
) -> Prediction:
    """An answer as a prediction.

    Args:
        rows: that were asked.
        metadata: of the model.
        proof: of the answer; empty for none.
        asked: names of the outputs that were asked for; empty for all.

    Raises:
        ServiceError: it cannot be an answer of this model to so many rows.
    """
    uncertain = np.zeros(rows, dtype=np.bool_)
    if any(len(values) != rows for values in answer.outputs.values()):
        raise ServiceError(f"expected {rows} rows in each output")
    if any(not 0 <= row < rows for row in answer.uncertain):
        raise ServiceError("the answer marks a row as uncertain that was not asked")
    uncertain[list(answer.uncertain)] = True
    labels = () if metadata.garrison is None else metadata.garrison.labels
    _check_classes(answer.outputs.get(CLASSES), len(labels))
    _check_all_there(answer.outputs.keys(), asked or [spec.name for spec in metadata.outputs])
    for name, values in answer.outputs.items():
        _check_named(name, values, metadata)
        _check_values(name, values, len(labels), metadata)
    proofs = (proof,) if proof else ()
    return Prediction(answer.outputs, labels, uncertain, proved, answer.model, answer.version, attested, proofs)


def _check_all_there(found: Collection[str], asked: Sequence[str]) -> None:
    missing = [name for name in asked if name not in found]
    if missing:
        raise ServiceError(
            f"the answer lacks the output {missing[0][:64]!r}, which was asked for; if the service was started anew with another policy, begin with a new client"
        )


def _check_classes(classes: Array | None, labels: int) -> None:
    if classes is None:
        return
    if classes.dtype.kind not in "iu" or (classes < 0).any() or (labels and (classes >= labels).any()):
        raise ServiceError(f"the answer names classes that the model does not have: expected 0 to {labels - 1}")


def _check_named(name: str, values: Array, metadata: ModelMetadata) -> None:
    spec = next((spec for spec in metadata.outputs if spec.name == name), None)
    if spec is None:
        raise ServiceError(
            f"the answer has an output {name[:64]!r} that the model's metadata does not name; "
            "if the service was started anew with another policy, begin with a new client"
        )
    if DATATYPES.get(values.dtype) != spec.datatype or values.shape[1:] != tuple(spec.shape[1:]):
        raise ServiceError(
            f"output {name[:64]!r}: expected {spec.datatype} of shape [rows, {', '.join(map(str, spec.shape[1:]))}], "
            f"found {values.dtype} of {list(values.shape)}"
        )


def _check_values(name: str, values: Array, labels: int, metadata: ModelMetadata) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ServiceError(f"output {name[:64]!r} holds NaN or an infinite value")
    task = None if metadata.garrison is None else metadata.garrison.task
    if name != PROBABILITIES or task is not Task.CLASSIFICATION or values.size == 0:
        return
    if values.ndim != 2:
        raise ServiceError("the answer's probabilities are none: expected a list of them a row")
    off = _tolerance(values)
    sums = values.sum(axis=1, dtype=np.float64)
    whole = labels == values.shape[1] and all(spec.name != CLASSES for spec in metadata.outputs)
    if values.min() < -off or sums.max() > 1.0 + off or (whole and sums.min() < 1.0 - off):
        raise ServiceError("the answer's probabilities are none: expected none below 0, and a sum of 1")


def _tolerance(values: Array) -> float:
    """By how much an honest sum may miss 1: rounding to d decimals moves each value by up to half of 10^-d."""
    least = _HALF_TOLERANCE if values.dtype.itemsize < 4 else SUM_TOLERANCE
    for decimals in range(_MOST_DECIMALS):
        step = 10.0**-decimals
        if 0.5 * values.shape[1] * step <= least:
            return least
        scaled = values.astype(np.float64) / step
        if np.abs(scaled - np.round(scaled)).max() * step < 10.0**-_MOST_DECIMALS:
            return float(0.5 * values.shape[1] * step)
    return least
