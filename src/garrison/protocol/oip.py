"""Open Inference Protocol v2, the service's half: read a request, write an answer. Pure functions over bytes.

JSON, and JSON followed by binary tensors (Triton's binary tensor data extension: the length of the JSON part is told beside
the body). What strangers send is read here, inside the enclave, so this is strict about everything that has a meaning, and
deaf to the rest: members and `parameters` that the protocol allows and this service does not know are passed over.

Invariants: an `InferRequest` holds exactly the model's inputs, each C-contiguous, aligned, of the model's dtype and row shape,
with the same number of rows, between 1 and the limit; a tensor's size is known and compared before its bytes are touched; no
error message holds a tensor's value.

Not checked here: the range of values, which is the guard's (`bounds`); doubled members within one JSON object, of which the last
one counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from garrison.errors import InputError, LimitError, MalformedRequestError
from garrison.limits import Limits
from garrison.protocol.oip_json import Want, array_of
from garrison.protocol.oip_schema import (
    Answer,
    AnswerTensor,
    BinarySize,
    InputTensor,
    Message,
    OutputTensor,
    data_type,
    json_types,
)
from garrison.types import DATATYPES, Array, ModelFacts, Released

UNCERTAIN_PARAMETER = "garrison_uncertain_rows"
"""Response parameter: the rows that the owner's policy answers with "uncertain", as "3,7"."""
ALL_JSON = -1
"""In place of a length: the whole body is JSON."""
GRPC = -2
"""In place of a length: the body is a message of gRPC (see `garrison.protocol.oip_grpc`)."""

_SHOWN_CHARACTERS = 64
_HEAD_BYTES, _MOST_HEADS = 1024, 256
"""JSON parts that are remembered, without their id: how long, and how many."""
_WITH_ID = re.compile(rb'\{"id":"([A-Za-z0-9_.:-]{1,64})",(?=")')


class WantedOutput(msgspec.Struct, frozen=True):
    """An output that the client asks for; `binary` is None where the request's default counts."""

    name: str
    binary: bool | None


class InferRequest(msgspec.Struct, frozen=True):
    """A request whose every tensor fits the model.

    Attributes:
        id: the client's, given back in the answer; may be empty.
        inputs: by name, each (rows, ...), C-contiguous and aligned, never to be written to.
        rows: inputs to be scored, at least 1.
        outputs: what the client asks for; empty for all.
        binary_default: whether outputs go into the binary part where the client says nothing else.
        grpc: whether it came as a message of gRPC, and is answered with one.
    """

    id: str
    inputs: dict[str, Array]
    rows: int
    outputs: tuple[WantedOutput, ...]
    binary_default: bool
    grpc: bool = False


_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Plan:
    inputs: dict[str, Want]
    decoder: msgspec.json.Decoder[Message[Any]]
    mixed: bool
    heads: dict[bytes, _Head] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Head:
    """A JSON part that was read, found good and told of binary tensors alone; it means the same wherever it comes again.

    Attributes:
        limits: those under which it was read.
        tensors: in the order of the binary part, each with its bytes.
        size: of the binary part.
    """

    limits: Limits
    tensors: tuple[tuple[Want, int], ...]
    rows: int
    outputs: tuple[WantedOutput, ...]
    binary_default: bool
    size: int

    def read(self, body: bytes, start: int, request_id: str) -> InferRequest:
        inputs: dict[str, Array] = {}
        for want, size in self.tensors:
            inputs[want.name] = from_binary(body, start, size, want, self.rows)
            start += size
        return InferRequest(request_id, inputs, self.rows, self.outputs, self.binary_default)


def decode_request(body: bytes, json_bytes: int, facts: ModelFacts, limits: Limits) -> InferRequest:
    """Read an inference request.

    Args:
        body: the request's body.
        json_bytes: length of its JSON part (header `Inference-Header-Content-Length`), -1 where all of it is JSON.
        facts: what the model takes.
        limits: `request_json_bytes`, `request_rows`, `json_depth` and `string_bytes` count here.

    Raises:
        MalformedRequestError: not such a message, or its sizes contradict each other.
        InputError: a tensor that the model does not take: name, datatype, shape, number.
        LimitError: longer than the limits allow.
    """
    plan = plan_of(facts)
    head, head_id = _without_id(body[:json_bytes]) if 0 < json_bytes <= _HEAD_BYTES else (b"", "")
    known = plan.heads.get(head)
    if known is not None and known.limits is limits and known.size == len(body) - json_bytes:
        check_length("the request's id", head_id, limits)
        return known.read(body, json_bytes, head_id)
    binary = json_bytes != ALL_JSON
    if binary and not 0 <= json_bytes <= len(body):
        raise MalformedRequestError(
            f"the length of the JSON part must lie between 0 and the body's {len(body)} bytes, found {json_bytes}"
        )
    end = json_bytes if binary else len(body)
    if end > limits.request_json_bytes:
        raise LimitError(
            f"the JSON part may have {limits.request_json_bytes} bytes, found {end}; send tensors in the binary form"
        )
    message = _parse(memoryview(body)[:end] if binary else body, plan)
    request_id = message.id or ""
    check_length("the request's id", request_id, limits)
    inputs: dict[str, Array] = {}
    tensors: list[tuple[Want, int]] = []
    rows = 0
    for tensor in message.inputs:
        want = wanted_input(tensor, plan, inputs)
        rows = check_shape(tensor, want, rows, limits)
        size = _binary_size(tensor, binary=binary)
        if size is None:
            inputs[want.name] = array_of(tensor.data, want, rows, limits, mixed=plan.mixed)
        else:
            inputs[want.name] = from_binary(body, end, size, want, rows)
            tensors.append((want, size))
            end += size
    if len(inputs) != len(plan.inputs):
        raise InputError(f"the model also needs the input {listed(n for n in plan.inputs if n not in inputs)}")
    if binary and end != len(body):
        raise MalformedRequestError(
            f"the binary part has {len(body) - json_bytes} bytes, but the tensors' binary_data_size add up to "
            f"{end - json_bytes}"
        )
    default = message.parameters is not None and message.parameters.binary_data_output
    outputs = _outputs(message.outputs, limits)
    if head and request_id == head_id and len(tensors) == len(inputs) and b'"id"' not in head and b"\\" not in head:
        if len(plan.heads) >= _MOST_HEADS:
            plan.heads.clear()
        plan.heads[head] = _Head(limits, tuple(tensors), rows, outputs, default, len(body) - json_bytes)
    return InferRequest(request_id, inputs, rows, outputs, default)


def _without_id(head: bytes) -> tuple[bytes, str]:
    """A JSON part without the id that it begins with, and that id: clients give each request one of its own, and mean the same with the rest."""
    found = _WITH_ID.match(head)
    return (head, "") if found is None else (b"{" + head[found.end() :], found[1].decode())


def check_outputs(request: InferRequest, offered: Iterable[str]) -> None:
    """See, before anything is computed, that a request asks for released outputs alone.

    Raises:
        InputError: it asks for another one.
    """
    for wanted in request.outputs:
        if wanted.name not in offered:
            raise InputError(f"unknown output {shown(wanted.name)}; this model gives {listed(offered)}")


def encode_response(
    request: InferRequest, released: Released, model_name: str, model_version: str
) -> tuple[bytes, int]:
    """Write the answer to a request: all released tensors, or those that it asks for, in the order asked.

    Args:
        request: the request, as read.
        released: what may leave, one row per row of the request.

    Returns:
        The body, and the length of its JSON part, -1 where all of it is JSON.

    Raises:
        KeyError: the request asks for an output that is not released; `check_outputs` comes before.
    """
    outputs, default = released.outputs, request.binary_default
    tensors: list[AnswerTensor] = []
    parts: list[bytes] = [b""]
    for wanted in request.outputs or [WantedOutput(name, None) for name in outputs]:
        values = outputs[wanted.name]
        tensor = AnswerTensor(wanted.name, DATATYPES[values.dtype], values.shape)
        if default if wanted.binary is None else wanted.binary:
            parts.append(values.tobytes())
            tensor.parameters = BinarySize(len(parts[-1]))
        else:
            tensor.data = values.ravel().tolist()
        tensors.append(tensor)
    uncertain = released.uncertain
    marks = None
    if uncertain.any():
        marks = {UNCERTAIN_PARAMETER: ",".join(map(str, np.flatnonzero(uncertain).tolist()))}
    parts[0] = _ENCODER.encode(Answer(model_name, model_version, tensors, request.id, marks))
    return (parts[0], ALL_JSON) if len(parts) == 1 else (b"".join(parts), len(parts[0]))


@lru_cache(maxsize=256)
def plan_of(facts: ModelFacts) -> Plan:
    inputs = {
        spec.name: Want(
            name=spec.name,
            datatype=DATATYPES[spec.dtype],
            dtype=spec.dtype,
            shape=spec.shape,
            features=math.prod(spec.shape),
            row_bytes=math.prod(spec.shape) * spec.dtype.itemsize,
            types=json_types(spec.dtype, missing=bool(spec.may_be_missing.any())),
        )
        for spec in facts.inputs
    }
    kinds = {want.types for want in inputs.values()}
    depth = 1 + max(len(want.shape) for want in inputs.values())
    data = data_type(frozenset(chain.from_iterable(kinds)), depth)
    return Plan(inputs, msgspec.json.Decoder(Message[data]), len(kinds) > 1)  # type: ignore[valid-type]


def _parse(data: bytes | memoryview, plan: Plan) -> Message[Any]:
    try:
        return plan.decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRequestError(f"not an inference request in JSON: {error}") from error
    except RecursionError as error:
        raise MalformedRequestError("not an inference request in JSON: nested too deeply") from error


def wanted_input(tensor: InputTensor[Any], plan: Plan, found: dict[str, Array]) -> Want:
    want = plan.inputs.get(tensor.name)
    if want is None:
        raise InputError(f"unknown input {shown(tensor.name)}; this model takes {listed(plan.inputs)}")
    if want.name in found:
        raise MalformedRequestError(f"the input {want.name!r} is given twice")
    if tensor.datatype != want.datatype:
        raise InputError(f"input {want.name!r}: expected datatype {want.datatype}, found {shown(tensor.datatype)}")
    return want


def check_shape(tensor: InputTensor[Any], want: Want, rows: int, limits: Limits) -> int:
    """The number of rows; `rows` is that of the inputs before, 0 for none."""
    shape = tensor.shape
    if len(shape) != len(want.shape) + 1 or tuple(shape[1:]) != want.shape:
        expected = ", ".join(["rows", *map(str, want.shape)])
        raise InputError(f"input {want.name!r}: expected shape [{expected}], found {shown(shape)}")
    if shape[0] < 1:
        raise InputError(f"input {want.name!r}: expected at least 1 row, found {shown(shape[0])}")
    if shape[0] > limits.request_rows:
        raise LimitError(
            f"input {want.name!r}: a request may have {limits.request_rows} rows, found {shown(shape[0])}; split it"
        )
    if rows and rows != shape[0]:
        raise InputError(f"all inputs must have equally many rows: found {rows}, and {shape[0]} in {want.name!r}")
    return shape[0]


def _binary_size(tensor: InputTensor[Any], *, binary: bool) -> int | None:
    """The length of the tensor's binary form, None where it is given in JSON."""
    parameters = tensor.parameters
    size = None if parameters is None else parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        both = "both are" if size is not None else "neither is"
        hint = "; shared memory is not offered" if parameters is not None and parameters.shared_memory_region else ""
        raise MalformedRequestError(
            f"input {tensor.name!r}: expected either data or parameters.binary_data_size, {both} given{hint}"
        )
    if size is not None and not binary:
        raise MalformedRequestError(
            f"input {tensor.name!r}: binary_data_size needs the header Inference-Header-Content-Length, none was sent"
        )
    return size


def from_binary(body: bytes, start: int, size: int, want: Want, rows: int) -> Array:
    expected = rows * want.row_bytes
    if size != expected:
        raise MalformedRequestError(
            f"input {want.name!r}: {rows} rows of {want.datatype} are {expected} bytes, "
            f"but binary_data_size is {shown(size)}"
        )
    if start + size > len(body):
        raise MalformedRequestError(
            f"input {want.name!r}: binary_data_size is {size}, but only {len(body) - start} bytes of the body are left"
        )
    if want.dtype.kind == "b":
        return booleans(np.frombuffer(body, np.uint8, size, start), want).reshape(rows, *want.shape)
    values: Array = np.frombuffer(body, want.dtype, rows * want.features, start)
    if start % want.dtype.itemsize:  # the JSON part may have any length, and not all code reads unaligned numbers well
        values = values.copy()
    return values.reshape(rows, *want.shape)


def booleans(data: Array, want: Want) -> Array:
    if data.max(initial=0) > 1:
        raise InputError(f"input {want.name!r}: a BOOL in binary form is a byte 0 or 1, found another value")
    return data.view(np.bool_)


def _outputs(found: Sequence[OutputTensor] | None, limits: Limits) -> tuple[WantedOutput, ...]:
    if not found:
        return ()
    wanted: dict[str, WantedOutput] = {}
    for output in found:
        check_length("an output's name", output.name, limits)
        parameters = output.parameters
        if output.name in wanted:
            raise MalformedRequestError(f"the output {shown(output.name)} is asked for twice")
        if parameters is not None and parameters.classification:
            raise InputError(f"output {shown(output.name)}: the classification extension is not offered")
        wanted[output.name] = WantedOutput(output.name, None if parameters is None else parameters.binary_data)
    return tuple(wanted.values())


def check_length(what: str, text: str, limits: Limits) -> None:
    if len(text) > limits.string_bytes or len(text.encode()) > limits.string_bytes:
        raise LimitError(f"{what} may have {limits.string_bytes} bytes, found {len(text.encode())}")


def shown(value: object) -> str:
    """What a client sent, short enough for an error message."""
    try:
        text = repr(value[:_SHOWN_CHARACTERS] if isinstance(value, list | str) else value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number too long to show"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
