"""What a model's inputs look like, learned from data: dtype, shape, value range, what may be missing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from garrison.bundle.manifest import InputSpec
from garrison.errors import CalibrationError
from garrison.types import DATATYPES, Array

SLACK = 0.5
"""Room left beyond the values seen in a table's feature, as a share of their range: an honest row may go a little further."""


def input_specs(data: Mapping[str, Array], bounds: tuple[float, float] | None = None) -> tuple[InputSpec, ...]:
    """The inputs with their allowed ranges.

    An image, or any input of more than one dimension, gets one range: the smallest and the largest value seen. A table gets a
    range a feature, widened by half its width on either side; a constant feature is widened as the widest one.

    Args:
        data: by input name, (rows, ...), in the dtype that the graph takes.
        bounds: the owner's own range for all values, in place of what was seen.

    Raises:
        CalibrationError: no rows, infinite values, nothing but NaN in a feature, or data outside the owner's own range.
    """
    return tuple(_spec(name, x, bounds) for name, x in data.items())


def _spec(name: str, x: Array, bounds: tuple[float, float] | None) -> InputSpec:
    if not len(x) or x.size == 0:
        raise CalibrationError(f"input {name!r}: no values in the data, shape {x.shape}")
    flat = x.reshape(len(x), -1)
    missing = np.isnan(flat) if x.dtype.kind == "f" else np.zeros(flat.shape, dtype=np.bool_)
    if x.dtype.kind == "f" and np.isinf(flat).any():
        raise CalibrationError(f"input {name!r}: the data hold infinite values")
    low, high = _seen(name, flat, missing)
    if bounds is not None:
        low, high = _given(name, low, high, bounds)
    elif x.ndim == 2 and x.dtype.kind == "f":
        low, high = _widened(low, high)
    else:
        low, high = low.min(keepdims=True), high.max(keepdims=True)
    absent = np.asarray(missing.any(axis=0))
    return InputSpec(
        name=name,
        datatype=DATATYPES[x.dtype],  # type: ignore[arg-type]  # the literals are this table's values
        shape=x.shape[1:],
        minimum=_plain(low),
        maximum=_plain(high),
        may_be_missing=tuple(absent.tolist()) if absent.any() else False,
    )


def _seen(name: str, flat: Array, missing: Array) -> tuple[Array, Array]:
    if missing.all(axis=0).any():
        feature = int(np.flatnonzero(missing.all(axis=0))[0])
        raise CalibrationError(f"input {name!r}: feature {feature} holds nothing but NaN")
    if missing.any():
        return np.nanmin(flat, axis=0).astype(np.float64), np.nanmax(flat, axis=0).astype(np.float64)
    return flat.min(axis=0).astype(np.float64), flat.max(axis=0).astype(np.float64)


def _given(name: str, low: Array, high: Array, bounds: tuple[float, float]) -> tuple[Array, Array]:
    if not bounds[0] < bounds[1]:
        raise CalibrationError(f"input {name!r}: the range must go from a smaller to a larger value, found {bounds}")
    if low.min() < bounds[0] or high.max() > bounds[1]:
        raise CalibrationError(
            f"input {name!r}: the data reach from {low.min():g} to {high.max():g}, outside the given range {bounds}"
        )
    return np.array([bounds[0]]), np.array([bounds[1]])


def _widened(low: Array, high: Array) -> tuple[Array, Array]:
    width = high - low
    width = np.where(width > 0, width, max(float(width.max()), 1.0))
    return low - SLACK * width, high + SLACK * width


def _plain(values: Array) -> float | tuple[float, ...]:
    return float(values[0]) if len(values) == 1 else tuple(float(v) for v in values)
