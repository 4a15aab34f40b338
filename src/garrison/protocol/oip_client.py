"""Open Inference Protocol v2, the client's half: write a request, read an answer. Pure functions over bytes.

The mirror of `garrison.protocol.oip`. A client trusts a server no more than a server trusts a client: sizes are compared before
bytes are touched, and whatever does not fit is a `ServiceError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from garrison.errors import InputError, ServiceError
from garrison.protocol.oip import ALL_JSON, UNCERTAIN_PARAMETER
from garrison.types import DATATYPES, NUMPY_DTYPES, Array


class InferAnswer(msgspec.Struct, frozen=True):
    """What a service answered.

    Attributes:
        model, version: as the server names them.
        outputs: answer tensors by name, each (rows, ...).
        uncertain: numbers of the rows that are answered with "uncertain".
        id: the request's.
    """

    model: str
    version: str
    outputs: dict[str, Array]
    uncertain: tuple[int, ...]
    id: str = ""


class _TensorParameters(msgspec.Struct):
    binary_data_size: int | None = None


class _OutputTensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: _TensorParameters | None = None
    data: list[Any] | None = None


class _Answer(msgspec.Struct):
    model_name: str
    outputs: list[_OutputTensor]
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Any] | None = None


_MOST_DIMENSIONS = 32
"""As many as every NumPy can hold."""
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(_Answer)


def encode_request(
    inputs: Mapping[str, Array], *, binary: bool = True, outputs: Sequence[str] = (), request_id: str = ""
) -> tuple[bytes, int]:
    """Write an inference request.

    Args:
        inputs: by name, each (rows, ...), in the model's dtype.
        binary: whether tensors go into the binary part, in the request and in its answer.
        outputs: names of the outputs wanted; empty for all.
        request_id: comes back in the answer.

    Returns:
        The body, and the length of its JSON part, -1 where all of it is JSON.

    Raises:
        InputError: a dtype that the protocol does not know, or NaN or infinity in JSON.
    """
    message: dict[str, Any] = {"id": request_id} if request_id else {}
    tensors, parts = [], [b""]
    for name, values in inputs.items():
        if values.dtype not in DATATYPES:
            raise InputError(f"input {name!r}: expected a dtype of numbers or booleans, found {values.dtype}")
        tensor: dict[str, Any] = {"name": name, "shape": values.shape, "datatype": DATATYPES[values.dtype]}
        if binary:
            parts.append(values.tobytes())
            tensor["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            tensor["data"] = _json_data(name, values)
        tensors.append(tensor)
    message["inputs"] = tensors
    message["parameters"] = {"binary_data_output": binary}
    if outputs:
        message["outputs"] = [{"name": name} for name in outputs]
    parts[0] = _ENCODER.encode(message)
    return (b"".join(parts), len(parts[0])) if binary else (parts[0], ALL_JSON)


def decode_response(body: bytes, json_bytes: int) -> InferAnswer:
    """Read the answer to an inference request.

    Args:
        body: the response's body.
        json_bytes: length of its JSON part, -1 where all of it is JSON.

    Raises:
        ServiceError: not such a message, or its sizes contradict each other.
    """
    end = len(body) if json_bytes == ALL_JSON else json_bytes
    if not 0 <= end <= len(body):
        raise ServiceError(
            f"the answer's JSON part must lie between 0 and the body's {len(body)} bytes, found {json_bytes}"
        )
    try:
        answer = _DECODER.decode(memoryview(body)[:end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ServiceError(f"the answer is no inference response in JSON: {error}") from error
    outputs: dict[str, Array] = {}
    for tensor in answer.outputs:
        size = None if tensor.parameters is None else tensor.parameters.binary_data_size
        outputs[tensor.name] = _tensor(tensor, body, end, size)
        end += size or 0
    if len(outputs) != len(answer.outputs) or end != len(body):
        raise ServiceError("the answer's tensors do not fill its body, or one comes twice")
    return InferAnswer(answer.model_name, answer.model_version, outputs, _uncertain(answer), answer.id)


def _json_data(name: str, values: Array) -> list[Any]:
    if values.dtype.kind == "f" and np.isinf(values).any():
        raise InputError(f"input {name!r}: JSON cannot hold infinity; send it in the binary form")
    flat: list[Any] = values.ravel().tolist()
    return flat


def _tensor(tensor: _OutputTensor, body: bytes, start: int, size: int | None) -> Array:
    dtype = NUMPY_DTYPES.get(tensor.datatype)
    shape = tensor.shape
    wrong = not 0 < len(shape) <= _MOST_DIMENSIONS or min(shape) < 0 or max(shape) > len(body)
    if dtype is None or wrong:
        raise ServiceError(f"the answer's output {tensor.name[:64]!r} has an unknown datatype or an impossible shape")
    count = math.prod(shape)
    if size is None:
        return _from_json(tensor, dtype, count)
    if size != count * dtype.itemsize or start + size > len(body):
        raise ServiceError(f"the answer's output {tensor.name[:64]!r} has a binary size that does not fit its shape")
    return np.frombuffer(body, dtype, count, start).reshape(shape).copy()


def _from_json(tensor: _OutputTensor, dtype: np.dtype[Any], count: int) -> Array:
    data = tensor.data or []
    try:
        values: Array = np.array(data, dtype=dtype)
        if values.size != count:
            raise ServiceError(f"the answer's output {tensor.name[:64]!r} has {values.size} values, expected {count}")
        return values.reshape(tensor.shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise ServiceError(f"the answer's output {tensor.name[:64]!r} is not {tensor.datatype}") from error


def _uncertain(answer: _Answer) -> tuple[int, ...]:
    if answer.parameters is None:
        return ()
    text = answer.parameters.get(UNCERTAIN_PARAMETER, "")
    try:
        return tuple(int(row) for row in text.split(",") if row)
    except (AttributeError, ValueError) as error:
        raise ServiceError(f"the answer's parameter {UNCERTAIN_PARAMETER} is not a list of row numbers") from error
