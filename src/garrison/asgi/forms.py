"""How questions and answers look: Open Inference Protocol bodies, or an app's own JSON with named fields.

The app never gets the bytes that a client sent, but a request written anew from what the guard has read: two readers of one text could
take it for different inputs (a field that stands twice, say), and then the guard would look at one and the model at another.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import numpy as np

from garrison.asgi.fields import Fields, Json, packer, reader_of
from garrison.errors import GarrisonError, LimitError, MalformedRequestError, ServiceError
from garrison.limits import Limits
from garrison.protocol.oip import ALL_JSON, InferRequest, check_outputs, decode_request, encode_response
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.types import Array, BoolArray, ModelFacts, Released

LENGTH_HEADER = b"inference-header-content-length"
JSON_TYPE, BINARY_TYPE = b"application/json", b"application/octet-stream"
_MOST_DIGITS = 15
_NOT_IN_STRUCTS = {'"', "\\"}
_ANSWER = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder()
_JSON_HEADER = ((b"content-type", JSON_TYPE),)
_PLAIN = frozenset({JSON_TYPE, JSON_TYPE + b"; charset=utf-8", JSON_TYPE + b";charset=utf-8"})

Headers = Mapping[bytes, bytes]


class Question(msgspec.Struct, frozen=True, eq=False):
    """What the guard let through; the endpoint finds it in `request.scope["garrison"]`.

    Attributes:
        inputs: by the model's input names, each (rows, ...); not to be written to.
        caller: who asks.
    """

    inputs: Mapping[str, Array]
    caller: str


class Asked(msgspec.Struct, frozen=True, eq=False):
    """A request that was read.

    Attributes:
        inputs: by name, each (rows, ...), as the manifest describes them.
        body, headers: what the app gets.
        single: one row that was not in a list.
        request: the Open Inference Protocol request, where it is one.
    """

    inputs: dict[str, Array]
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    single: bool = False
    request: InferRequest | None = None


class Told(msgspec.Struct, frozen=True, eq=False):
    """An answer of the app that was read: real values of shape (rows, outputs), and fields to be kept."""

    values: Array
    kept: Json = {}


class Written(msgspec.Struct, frozen=True, eq=False):
    """A body, and the headers that describe it."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]


class Form(Protocol):
    def read(self, headers: Headers, body: bytes, caller: str) -> Asked:
        """Raises `RequestError`."""
        ...

    def told(self, asked: Asked, headers: Headers, body: bytes) -> Told:
        """Raises `ServiceError`."""
        ...

    def write(self, asked: Asked, told: Told, released: Released) -> Written: ...


class ProtocolForm:
    """Open Inference Protocol v2, JSON and binary tensors.

    Args:
        facts, name, version: of the model.
        released: the names of the tensors that a caller gets.
        output: name of the tensor that the app answers.
        limits: sizes.
    """

    def __init__(
        self,
        facts: ModelFacts,
        name: str,
        version: str,
        released: Callable[[str], tuple[str, ...]],
        output: str,
        limits: Limits,
    ) -> None:
        self._facts, self._limits, self._output = facts, limits, output
        self._name, self._version, self._released = name, version, released

    def read(self, headers: Headers, body: bytes, caller: str) -> Asked:
        json_bytes = _length(headers.get(LENGTH_HEADER), MalformedRequestError)
        if json_bytes == ALL_JSON:
            check_json_type(headers)
        request = decode_request(body, json_bytes, self._facts, self._limits)
        if request.outputs:
            check_outputs(request, self._released(caller))
        binary = json_bytes != ALL_JSON
        again, length = encode_request(request.inputs, binary=binary, request_id=request.id)
        kind = BINARY_TYPE if binary else JSON_TYPE
        more = ((LENGTH_HEADER, str(length).encode()),) if binary else ()
        return Asked(request.inputs, again, ((b"content-type", kind), *more), request=request)

    def told(self, asked: Asked, headers: Headers, body: bytes) -> Told:  # noqa: ARG002
        answer = decode_response(body, _length(headers.get(LENGTH_HEADER), ServiceError))
        if self._output not in answer.outputs:
            raise ServiceError(f"expected an output {self._output!r}, found {', '.join(answer.outputs) or 'none'}")
        values = answer.outputs[self._output]
        return Told(values.reshape(len(values), -1) if values.ndim else values)

    def write(self, asked: Asked, told: Told, released: Released) -> Written:  # noqa: ARG002
        if asked.request is None:
            raise ServiceError("no Open Inference Protocol request")
        body, length = encode_response(asked.request, released, self._name, self._version)
        if length == ALL_JSON:
            return Written(body, _JSON_HEADER)
        return Written(body, ((b"content-type", BINARY_TYPE), (LENGTH_HEADER, str(length).encode())))


class JsonForm:
    """An app's own JSON: an object with the input in named fields; the answer is an object with probabilities in a named field.

    Args:
        facts: of the model.
        inputs: see `Fields`.
        output: the answer's field with the model's whole answer.
        tensor: the name of that answer among what is released.
        label: a field that the guard adds: the label of the first class; None for no such field.
        keep: further fields of the answer that leave as they are. All others are dropped.
        limits: sizes.

    `garrison.asgi.fields.why_not` has found nothing wrong with the names.
    """

    def __init__(
        self,
        facts: ModelFacts,
        inputs: Fields,
        output: str,
        tensor: str,
        label: str | None,
        keep: frozenset[str],
        limits: Limits,
    ) -> None:
        self._facts, self._output, self._tensor, self._label, self._keep = facts, output, tensor, label, keep
        self._limits = limits
        self._read = reader_of(facts, inputs)
        self._one_row = _OneRow.of(facts, output, keep)

    def read(self, headers: Headers, body: bytes, caller: str) -> Asked:  # noqa: ARG002
        check_json_type(headers)
        if len(body) > self._limits.request_json_bytes:
            raise LimitError(f"a body may have {self._limits.request_json_bytes} bytes of JSON, found {len(body)}")
        if not body.isascii():
            check_utf8(body)  # also the fields that are only handed on
        found = self._read(body)
        rows = len(next(iter(found.inputs.values())))
        if rows > self._limits.request_rows:
            raise LimitError(f"a request may have {self._limits.request_rows} rows, found {rows}; split it")
        return Asked(found.inputs, found.body, _JSON_HEADER, found.single)

    def told(self, asked: Asked, headers: Headers, body: bytes) -> Told:  # noqa: ARG002
        usual = None if self._one_row is None else self._one_row(body)
        if usual is not None:
            return usual
        try:
            found = _ANSWER.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ServiceError(f"the endpoint's answer is not JSON: {error}") from error
        if type(found) is not dict or self._output not in found:
            raise ServiceError(f"expected a JSON object with the field {self._output!r} from the endpoint")
        values = _real(found[self._output], len(next(iter(asked.inputs.values()))), self._facts.outputs)
        return Told(values, {name: found[name] for name in found.keys() & self._keep} if self._keep else {})

    def write(self, asked: Asked, told: Told, released: Released) -> Written:
        answer: Json = dict(told.kept)
        for name, values in released.outputs.items():
            listed = values.tolist()
            answer[self._output if name == self._tensor else name] = listed[0] if asked.single else listed
        uncertain = released.uncertain
        if True in uncertain.tolist():
            answer["uncertain"] = bool(uncertain[0]) if asked.single else uncertain.tolist()
        if self._label is not None:
            labels = self._labels(released, uncertain)
            answer[self._label] = labels[0] if asked.single else labels
        return Written(_ENCODER.encode(answer), _JSON_HEADER)

    def _labels(self, released: Released, uncertain: BoolArray) -> list[str | None]:
        outputs, names = released.outputs, self._facts.labels
        classes = outputs["classes"][:, 0] if "classes" in outputs else outputs[self._tensor].argmax(axis=1)
        marked = uncertain if len(uncertain) else np.zeros(len(classes), dtype=np.bool_)
        pairs = zip(classes.tolist(), marked.tolist(), strict=True)
        return [None if unsure else names[k] for k, unsure in pairs]


class _OneRow:
    """Reads an answer of the usual form, one row of numbers, at once; numpy takes four times as long for lists.

    Gives None for an answer of another form, or a wrong one.
    """

    def __init__(self, facts: ModelFacts, output: str, keep: frozenset[str], pack: Callable[..., bytes]) -> None:
        self._dtype, self._shape, self._pack = facts.value_dtype, (1, facts.outputs), pack
        self._keep = tuple(keep)
        kept = [(f"kept_{k}", Any, msgspec.field(name=at, default=msgspec.UNSET)) for k, at in enumerate(self._keep)]
        fields = [("rows", list[list[float]], msgspec.field(name=output)), *kept]
        self._decoder = msgspec.json.Decoder(msgspec.defstruct("Answer", fields))

    @classmethod
    def of(cls, facts: ModelFacts, output: str, keep: frozenset[str]) -> _OneRow | None:
        """None where numbers of this type are not known, or a name can be no struct's."""
        pack = packer(facts.value_dtype, facts.outputs)
        if pack is None or not all(name.isprintable() and not set(name) & _NOT_IN_STRUCTS for name in (output, *keep)):
            return None
        return cls(facts, output, keep, pack)

    def __call__(self, body: bytes) -> Told | None:
        try:
            found: Any = self._decoder.decode(body)
            (row,) = found.rows
            values = np.ndarray(self._shape, self._dtype, self._pack(*row))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, struct.error, OverflowError):
            return None
        return Told(values, self._kept(found)) if self._keep else Told(values)

    def _kept(self, found: Any) -> Json:
        pairs = zip(self._keep, msgspec.structs.astuple(found)[1:], strict=True)
        return {at: value for at, value in pairs if value is not msgspec.UNSET}


def check_json_type(headers: Headers) -> None:
    """Raise `MalformedRequestError` unless the body is said to be JSON, in UTF-8."""
    kind = headers.get(b"content-type", b"")
    if kind not in _PLAIN and kind.lower() not in _PLAIN:
        raise MalformedRequestError("expected a body of content-type application/json, in UTF-8")


def check_utf8(body: bytes) -> None:
    """Raise `MalformedRequestError` for bytes that one reader refuses and another passes over."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise MalformedRequestError("the body is not UTF-8") from error


def _length(header: bytes | None, error: type[GarrisonError]) -> int:
    if header is None:
        return ALL_JSON
    if not (header.isdigit() and len(header) <= _MOST_DIGITS):
        raise error(f"the header {LENGTH_HEADER.decode()} must be a number of bytes")
    return int(header)


def _real(value: Any, rows: int, outputs: int) -> Array:
    """The endpoint's answer as (rows, outputs)."""
    try:
        found = np.array(value)
    except ValueError as error:
        raise ServiceError("the endpoint's answer is not a list of equally long rows") from error
    if found.dtype.kind not in "fiu":
        raise ServiceError("the endpoint's answer holds something that is not a number")
    if found.shape in {(outputs,), ()} and rows == 1:
        found = found.reshape(1, -1)
    elif found.shape == (rows,) and outputs == 1:
        found = found[:, np.newaxis]
    return found
