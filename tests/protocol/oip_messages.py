"""Requests, and the models that they are for, of the tests of the Open Inference Protocol."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.protocol.oip import ALL_JSON, InferRequest, decode_request
from garrison.types import NUMPY_DTYPES, InputFacts, ModelFacts, Task

SECRET_VALUE = 0.73519


def spec(name: str, datatype: str, shape: tuple[int, ...], *, missing: bool = False) -> InputFacts:
    dtype, n = NUMPY_DTYPES[datatype], int(np.prod(shape))
    return InputFacts(name, dtype, shape, np.zeros(n, dtype), np.ones(n, dtype), np.full(n, missing))


def model(*inputs: InputFacts) -> ModelFacts:
    return ModelFacts(Task.CLASSIFICATION, inputs, ("a", "b"), 2, np.dtype(np.float32), False, False)


IMAGE = model(spec("x", "FP32", (2, 3)))
TABLE = model(spec("age", "FP64", (1,), missing=True), spec("codes", "INT16", (3,)), spec("flag", "BOOL", (1,)))


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 2, 3], "datatype": "FP32", "data": [SECRET_VALUE] * 6} | changes


def binary_tensor(size: Any = 24, **changes: Any) -> dict[str, Any]:
    found = tensor(parameters={"binary_data_size": size}, **changes)
    del found["data"]
    return found


def read(
    message: Any, tail: bytes | None = None, facts: ModelFacts = IMAGE, limits: Limits = DEFAULT_LIMITS
) -> InferRequest:
    head = message if isinstance(message, bytes) else json.dumps(message).encode()
    return decode_request(head + (tail or b""), ALL_JSON if tail is None else len(head), facts, limits)
