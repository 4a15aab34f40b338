"""Tensors that stand in the JSON part of a request: what an input must look like, and a list of values made an array of that form."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from garrison.errors import InputError, LimitError, MalformedRequestError
from garrison.limits import Limits
from garrison.types import Array

_FLOATS = frozenset("fd")


@dataclass(frozen=True, slots=True)
class Want:
    """What one input must look like; computed once for a model."""

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    features: int
    row_bytes: int
    types: frozenset[type]


def array_of(data: list[Any] | None, want: Want, rows: int, limits: Limits, *, mixed: bool) -> Array:
    """The values of one input.

    Args:
        data: as it stood in JSON.
        rows: by the tensor's shape.
        mixed: whether the model has inputs of several kinds, which were read with one type for all.

    Raises:
        MalformedRequestError, InputError, LimitError: they are not what is wanted.
    """
    flat = _flat(data or [], want, rows, limits)
    if mixed and not want.types.issuperset(map(type, flat)):
        # One type serves all inputs of the model when JSON is read; what it let through for another input is found here.
        flat = [float(v) if type(v) is int and float in want.types else v for v in flat]
        if not want.types.issuperset(map(type, flat)):
            raise MalformedRequestError(f"input {want.name!r}: data holds something that is not {want.datatype}")
    try:
        values = _packed(flat, want.dtype)
    except (TypeError, ValueError) as error:
        raise MalformedRequestError(
            f"input {want.name!r}: data must be one flat list, or nested as its shape"
        ) from error
    except OverflowError as error:
        raise InputError(f"input {want.name!r}: a number is outside the range of {want.datatype}") from error
    if want.dtype.kind == "f" and np.count_nonzero(np.isinf(values)):
        raise InputError(f"input {want.name!r}: a number is outside the range of {want.datatype}")
    return values.reshape(rows, *want.shape)


def _packed(flat: list[Any], dtype: np.dtype[Any]) -> Array:
    """An array of a list, a third of the time for floats."""
    if dtype.char in _FLOATS:
        with suppress(struct.error):  # something else than floats: numpy says what it makes of it
            return np.frombuffer(struct.pack(f"{len(flat)}{dtype.char}", *flat), dtype)
    with np.errstate(over="ignore"):
        return np.fromiter(flat, dtype, len(flat))


def _flat(data: list[Any], want: Want, rows: int, limits: Limits) -> list[Any]:
    """One flat list, from a flat one or from one that is nested exactly as the shape says."""
    level = data
    if want.shape and data and type(data[0]) is list:
        if len(want.shape) >= limits.json_depth:
            raise LimitError(f"input {want.name!r}: lists may be nested {limits.json_depth} deep; send a flat one")
        level = [data]
        for length in (rows, *want.shape):
            for part in level:
                if type(part) is not list or len(part) != length:
                    raise MalformedRequestError(
                        f"input {want.name!r}: data must be one flat list, or nested as its shape {[rows, *want.shape]}"
                    )
            level = list(chain.from_iterable(level))
    if len(level) != rows * want.features:
        raise MalformedRequestError(
            f"input {want.name!r}: its shape means {rows * want.features} values, found {len(level)} in data"
        )
    return level
