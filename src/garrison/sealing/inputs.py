"""The inputs of a model: what its graph takes, and which values calibration data show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from garrison.bundle.manifest import InputSpec
from garrison.crypto.canonical import sha256_hex
from garrison.errors import CalibrationError, MissingExtraError
from garrison.hardening.data import Rows, for_model
from garrison.hardening.graphs import graph_inputs
from garrison.hardening.ranges import SLACK, input_specs
from garrison.sealing.options import SealOptions
from garrison.types import NUMPY_DTYPES, Array

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

NATURAL_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""Ranges that images come in. A range that the data nearly fill is taken whole, so that an honest white pixel is not refused."""
NEARLY = 0.9
_CHECK_ROWS = 64
FEWEST_ROWS = 2


def rows_from_arrays(inputs: Mapping[str, Array], y: Array | None = None, labels: Sequence[str] | None = None) -> Rows:
    """Rows that came without a file; their digest is that of names, dtypes, shapes and bytes.

    Args:
        inputs: by the graph's input names, or `{"x": ...}` for a model with one input.
        y: (rows,), class numbers or target values, where known.
        labels: names of the classes, in the model's order.
    """
    arrays = [*sorted(inputs.items()), *([] if y is None else [("y", y)])]
    digest = sha256_hex(b"".join(f"{n} {x.dtype} {x.shape}\n".encode() + x.tobytes() for n, x in arrays))
    return Rows(dict(inputs), y, None if labels is None else tuple(labels), digest)


def model_inputs(model: onnx.ModelProto, rows: Rows) -> dict[str, Array]:
    """The rows as the graph takes them, at least two.

    Raises:
        CalibrationError: an input that is missing or does not fit, or fewer than two rows.
    """
    inputs = for_model(rows, graph_inputs(model))
    if len(rows) < FEWEST_ROWS:
        raise CalibrationError(f"expected at least {FEWEST_ROWS} rows of data, found {len(rows)}")
    return inputs


def describe_inputs(inputs: Mapping[str, Array], options: SealOptions) -> tuple[InputSpec, ...]:
    """The inputs with the ranges that these rows show.

    One range for an image (snapped to a natural one that the data nearly fill), one range a feature for a table.

    Raises:
        CalibrationError: values that no range can be learned from.
    """
    specs = (_adjusted(spec, inputs[spec.name], options) for spec in input_specs(inputs))
    if not options.may_be_missing:
        return tuple(specs)
    return tuple(msgspec.structs.replace(s, may_be_missing=True) if s.datatype.startswith("FP") else s for s in specs)


def _adjusted(spec: InputSpec, x: Array, options: SealOptions) -> InputSpec:
    if x.dtype.kind == "b":
        return msgspec.structs.replace(spec, minimum=0.0, maximum=1.0)
    if x.dtype == np.uint8 and x.ndim > 2:
        return msgspec.structs.replace(spec, minimum=0.0, maximum=255.0)
    if isinstance(spec.minimum, tuple) and isinstance(spec.maximum, tuple):
        pairs = [_margin(low, high, options.range_margin) for low, high in zip(spec.minimum, spec.maximum, strict=True)]
        low, high = zip(*pairs, strict=True)
        return msgspec.structs.replace(spec, minimum=low, maximum=high)
    if x.ndim > 2 and isinstance(spec.minimum, float) and isinstance(spec.maximum, float):
        low_one, high_one = _natural(spec.minimum, spec.maximum)
        return msgspec.structs.replace(spec, minimum=low_one, maximum=high_one)
    return spec


def _margin(low: float, high: float, margin: float) -> tuple[float, float]:
    """From the room that `input_specs` leaves to the owner's own."""
    width = (high - low) / (1 + 2 * SLACK)
    change = (SLACK - margin) * width
    return low + change, high - change


def _natural(low: float, high: float) -> tuple[float, float]:
    for smallest, largest in NATURAL_RANGES:
        if smallest <= low and NEARLY * largest <= high <= largest:
            return smallest, largest
    return low, high


def check_rows(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """A few rows, spread over the data, on which a sealed bundle is tried."""
    rows = len(next(iter(inputs.values())))
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, _CHECK_ROWS)).astype(np.intp))
    return {name: np.ascontiguousarray(x[chosen]) for name, x in inputs.items()}


def drawn_rows(specs: tuple[InputSpec, ...], rows: int = 16) -> dict[str, Array]:
    """Rows drawn evenly from the allowed ranges, for a draft that comes without data; always the same."""
    rng = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for spec in specs:
        dtype, features = NUMPY_DTYPES[spec.datatype], math.prod(spec.shape)
        low, high = (
            np.broadcast_to(np.asarray(v, dtype=np.float64), (features,)) for v in (spec.minimum, spec.maximum)
        )
        values = low + (high - low) * rng.random((rows, features))
        found[spec.name] = (
            (np.floor(values) if dtype.kind in "iub" else values).astype(dtype).reshape(rows, *spec.shape)
        )
    return found
