"""Open Inference Protocol v2 over gRPC, the service's half: read a `ModelInferRequest`, write a `ModelInferResponse`. Pure functions over bytes.

The messages are those of the protocol's `GRPCInferenceService` (package `inference`). As in `garrison.protocol.oip`, a request is read inside the enclave as it came, and
comes to the same `InferRequest`; the signed statement is over the messages' bytes as they travel. Answers are written as the standard's deterministic serialisation has
them (fields rising, defaults left out, one entry a map), so that a client that kept only the parsed message can write the same bytes again.

Tensors stand in `raw_input_contents`, or, all of them, in typed `contents`; answers come in the form of the request.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from garrison.errors import InputError, LimitError, MalformedRequestError
from garrison.limits import Limits
from garrison.protocol.oip import (
    GRPC,
    UNCERTAIN_PARAMETER,
    InferRequest,
    WantedOutput,
    check_length,
    check_shape,
    decode_request,
    from_binary,
    plan_of,
    shown,
    wanted_input,
)
from garrison.protocol.oip_json import Want
from garrison.protocol.oip_schema import InputTensor
from garrison.protocol.protobuf import (
    FIXED32,
    FIXED64,
    VARINT,
    Field,
    Fields,
    field,
    packed,
    scan,
    string,
    text,
    varints,
)
from garrison.types import DATATYPES, Array, ModelFacts, Released

_NAME, _VERSION, _ID, _PARAMETERS, _INPUTS, _OUTPUTS, _RAW = 1, 2, 3, 4, 5, 6, 7
_ANSWERS, _RAW_ANSWERS = 5, 6
_TENSOR_NAME, _DATATYPE, _SHAPE, _TENSOR_PARAMETERS, _CONTENTS = 1, 2, 3, 4, 5
_KEY, _VALUE, _STRING = 1, 2, 3
_CONTENT = {
    "BOOL": 1,
    "INT8": 2,
    "INT16": 2,
    "INT32": 2,
    "INT64": 3,
    "UINT8": 4,
    "UINT16": 4,
    "UINT32": 4,
    "UINT64": 5,
    "FP32": 6,
    "FP64": 7,
}
"""By datatype, the field of `InferTensorContents` for its values."""
_FLOATS = {"FP32": (FIXED32, "<f4"), "FP64": (FIXED64, "<f8")}
_UNKNOWN_HERE = ("shared_memory_region", "classification")


def model_of(body: bytes, limits: Limits) -> tuple[str, str]:
    """Which model a request is for: name and version, "" for none. All that a server reads of it.

    Raises:
        MalformedRequestError, LimitError: it cannot be told.
    """
    found = {_NAME: "", _VERSION: ""}
    for one in scan(body, 0, len(body)):
        if one.number in found:
            if one.end - one.start > limits.string_bytes:
                raise LimitError(f"a model's name or version may have {limits.string_bytes} bytes")
            found[one.number] = text(body, one)
        elif one.number > _VERSION:
            break  # who writes fields in another order names no model, and is told so
    return found[_NAME], found[_VERSION]


def decode_any(body: bytes, json_bytes: int, facts: ModelFacts, named: tuple[str, str], limits: Limits) -> InferRequest:
    """Read a request in whichever form it came: a message of gRPC where `json_bytes` is `GRPC`, else as `decode_request` reads it.

    Args:
        named: the model's name and version.
    """
    if json_bytes != GRPC:
        return decode_request(body, json_bytes, facts, limits)
    return decode_message(body, facts, *named, limits)


def decode_message(body: bytes, facts: ModelFacts, model: str, version: str, limits: Limits) -> InferRequest:
    """Read a `ModelInferRequest`.

    Args:
        facts, model, version: of this service.
        limits: `request_json_bytes` (for typed whole numbers), `request_rows` and `string_bytes` count here.

    Raises:
        MalformedRequestError: not such a message, or its sizes contradict each other.
        InputError: another model, or a tensor that the model does not take.
        LimitError: longer than the limits allow.
    """
    message = Fields(body, 0, len(body))
    if message.text(_NAME) != model or message.text(_VERSION) not in {"", version}:
        raise InputError(f"this is model {model!r}, version {version!r}")
    request_id = message.text(_ID)
    check_length("the request's id", request_id, limits)
    plan, tensors, raw = plan_of(facts), message.every(_INPUTS), message.every(_RAW)
    if raw and len(raw) != len(tensors):
        raise MalformedRequestError(f"{len(tensors)} inputs, but {len(raw)} raw_input_contents")
    inputs: dict[str, Array] = {}
    rows = 0
    for number, place in enumerate(tensors):
        fields = message.inner(place)
        tensor: InputTensor[Any] = InputTensor(
            fields.text(_TENSOR_NAME), _shape(fields, limits), fields.text(_DATATYPE)
        )
        _check_parameters(fields, _TENSOR_PARAMETERS)
        want = wanted_input(tensor, plan, inputs)
        rows = check_shape(tensor, want, rows, limits)
        contents = fields.one(_CONTENTS)
        if raw and contents is not None and contents.end > contents.start:
            raise MalformedRequestError(f"input {want.name!r}: its values stand in contents and in raw_input_contents")
        inputs[want.name] = (
            _raw_values(body, raw[number], want, rows) if raw else _typed(fields, contents, want, rows, limits)
        )
    if len(inputs) != len(plan.inputs):
        raise InputError(f"the model also needs the input {next(n for n in plan.inputs if n not in inputs)!r}")
    return InferRequest(request_id, inputs, rows, _outputs(message, limits), bool(raw), grpc=True)


def encode_message(request: InferRequest, released: Released, model: str, version: str) -> bytes:
    """Write the `ModelInferResponse`: all released tensors, or those that the request asks for, in the order asked.

    Raises:
        KeyError: the request asks for an output that is not released.
    """
    names = [wanted.name for wanted in request.outputs] or list(released.outputs)
    values = [released.outputs[name] for name in names]
    raw = request.binary_default or any(DATATYPES[x.dtype] not in _CONTENT for x in values)
    parts = [string(1, model), string(2, version), string(3, request.id)]
    if released.uncertain.any():
        rows = ",".join(map(str, np.flatnonzero(released.uncertain).tolist()))
        parts.append(field(_PARAMETERS, string(_KEY, UNCERTAIN_PARAMETER) + field(_VALUE, string(_STRING, rows))))
    for name, x in zip(names, values, strict=True):
        tensor = string(_TENSOR_NAME, name) + string(_DATATYPE, DATATYPES[x.dtype]) + packed(_SHAPE, x.shape)
        parts.append(field(_ANSWERS, tensor if raw else tensor + field(_CONTENTS, _written(x))))
    if raw:
        parts += [field(_RAW_ANSWERS, x.tobytes()) for x in values]
    return b"".join(parts)


def _shape(fields: Fields, limits: Limits) -> list[int]:
    """Looked at for its length first: a packed list of millions takes fifty times its bytes to read."""
    if sum(one.end - one.start for one in fields.any_of(_SHAPE, VARINT)) > limits.string_bytes:
        raise LimitError(f"an input's shape may have {limits.string_bytes} bytes")
    return fields.numbers(_SHAPE)


def _raw_values(body: bytes, place: Field, want: Want, rows: int) -> Array:
    size, expected = place.end - place.start, rows * want.row_bytes
    if size != expected:
        raise MalformedRequestError(
            f"input {want.name!r}: {rows} rows of {want.datatype} are {expected} bytes, its raw_input_contents has {size}"
        )
    return from_binary(body, place.start, size, want, rows)


def _typed(fields: Fields, contents: Field | None, want: Want, rows: int, limits: Limits) -> Array:
    """The values in a tensor's `contents`: in the field for its datatype, and in no other."""
    number = _CONTENT.get(want.datatype)
    if contents is None or number is None:
        hint = "raw_input_contents" if number is None else "values in contents or in raw_input_contents"
        raise MalformedRequestError(f"input {want.name!r}: expected {hint} for {want.datatype}")
    inner = fields.inner(contents)
    if inner.numbers_found - {number}:
        raise InputError(f"input {want.name!r}: contents holds values of another type than {want.datatype}")
    read = _floats if want.datatype in _FLOATS else _whole
    found = read(inner, number, want, limits)
    if len(found) != rows * want.features:
        raise MalformedRequestError(
            f"input {want.name!r}: its shape means {rows * want.features} values, found {len(found)} in contents"
        )
    return found.reshape(rows, *want.shape)


def _floats(inner: Fields, number: int, want: Want, limits: Limits) -> Array:  # noqa: ARG001
    fixed, form = _FLOATS[want.datatype]
    parts = []
    for one in inner.any_of(number, fixed):
        if (one.end - one.start) % want.dtype.itemsize:
            raise MalformedRequestError(f"input {want.name!r}: contents ends within a number")
        parts.append(np.frombuffer(inner.data, form, (one.end - one.start) // want.dtype.itemsize, one.start))
    found: Array = np.concatenate(parts) if parts else np.zeros(0, form)
    return np.ascontiguousarray(found, dtype=want.dtype)


def _whole(inner: Fields, number: int, want: Want, limits: Limits) -> Array:
    parts = []
    for one in inner.any_of(number, VARINT):
        if one.wire == VARINT:
            parts.append(np.array([one.start], dtype=np.uint64))
            continue
        if one.end - one.start > limits.request_json_bytes:
            raise LimitError(
                f"input {want.name!r}: contents may have {limits.request_json_bytes} bytes; use raw_input_contents"
            )
        parts.append(varints(inner.data, one.start, one.end))
    found = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    kind = want.dtype.kind
    if kind == "b":
        if (found > 1).any():
            raise InputError(f"input {want.name!r}: a BOOL is 0 or 1, found another value")
        return found.astype(np.bool_)
    values: Array = found.view(np.int64) if kind == "i" else found
    limit = np.iinfo(want.dtype)
    if values.size and (values.min() < limit.min or values.max() > limit.max):
        raise InputError(f"input {want.name!r}: a number is outside the range of {want.datatype}")
    return values.astype(want.dtype)


def _outputs(message: Fields, limits: Limits) -> tuple[WantedOutput, ...]:
    wanted: dict[str, WantedOutput] = {}
    for place in message.every(_OUTPUTS):
        fields = message.inner(place)
        name = fields.text(1)
        check_length("an output's name", name, limits)
        if name in wanted:
            raise MalformedRequestError(f"the output {shown(name)} is asked for twice")
        _check_parameters(fields, 2)
        wanted[name] = WantedOutput(name, None)
    return tuple(wanted.values())


def _check_parameters(fields: Fields, number: int) -> None:
    """Refuse parameters that would mean another answer than is given; others are passed over."""
    for place in fields.every(number):
        name = fields.inner(place).text(_KEY)
        if name in _UNKNOWN_HERE:
            raise InputError(f"the parameter {name!r} is not offered")


def _written(x: Array) -> bytes:
    """Values as `InferTensorContents`."""
    datatype = DATATYPES[x.dtype]
    number = _CONTENT[datatype]
    if not math.prod(x.shape):
        return b""
    if datatype in _FLOATS:
        return field(number, x.astype(_FLOATS[datatype][1], copy=False).tobytes())
    return packed(number, [int(value) for value in x.ravel().tolist()])
