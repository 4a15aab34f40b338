"""Finds a model's inputs in an app's own JSON.

A field is decoded strictly as numbers; the rest of the object is carried over as the text that it is, each field once.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from garrison.errors import GarrisonError, InputError, MalformedRequestError, ServiceError
from garrison.types import Array, InputFacts, ModelFacts

Json = dict[str, Any]
Function = Callable[[Json], Array | Mapping[str, Array]]
Fields = str | Sequence[str] | Mapping[str, str] | Function
"""Where the input stands: one field, fields of single features, a field for each input of the model, or a function that takes the body."""

_FEWEST_PACKED, _FEWEST_TYPED, _MOST_TYPED = 2, 64, 4096
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder(Json)
_ENCODER = msgspec.json.Encoder()


class Found(msgspec.Struct, frozen=True, eq=False):
    """The inputs, by name; the body, written anew; and whether they are one row that was not in a list."""

    inputs: dict[str, Array]
    body: bytes
    single: bool


class Reader(Protocol):
    def __call__(self, body: bytes) -> Found:
        """Raises `RequestError`."""
        ...


def reader_of(facts: ModelFacts, inputs: Fields) -> Reader:
    """How to read a body; `why_not` has found nothing wrong with the fields."""
    specs = facts.inputs
    if isinstance(inputs, str):
        return _ByField({inputs: specs[0]})
    if isinstance(inputs, Mapping):
        return _ByField({inputs[spec.name]: spec for spec in specs})
    if isinstance(inputs, Sequence):
        return _ByColumn(tuple(inputs), specs[0])
    return _ByFunction(inputs, specs)


def is_columns(inputs: Fields) -> bool:
    return isinstance(inputs, Sequence) and not isinstance(inputs, str)


def decode(decoder: msgspec.json.Decoder[Any], body: bytes | msgspec.Raw) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequestError(f"the body is not as expected: {error}") from error


def _element(spec: InputFacts) -> Any:
    """What may stand for a number. Only where a value may be missing, null stands for it."""
    if spec.dtype.kind == "b":
        return bool
    if spec.dtype.kind != "f":
        return int
    return float | None if spec.may_be_missing.any() else float


def _array(value: Any, at: str, spec: InputFacts) -> Array:
    try:
        with np.errstate(over="ignore"):
            return np.array(value, dtype=spec.dtype)
    except (OverflowError, ValueError, TypeError) as error:
        raise InputError(f"{at!r}: expected equally long rows of numbers within the range of {spec.dtype}") from error


def _check_finite(x: Array, at: str, spec: InputFacts) -> None:
    if spec.dtype.kind == "f" and np.count_nonzero(np.isinf(x)):
        raise InputError(f"{at!r}: a number is outside the range of {spec.dtype}")


def packer(dtype: np.dtype[Any], numbers: int) -> Callable[..., bytes] | None:
    """Writes so many finite floats as their bytes; raises `OverflowError` for one that is too large. None for a type that it does not know."""
    form = {np.dtype(np.float32): "f", np.dtype(np.float64): "d"}.get(dtype)
    return None if form is None else struct.Struct(f"={numbers}{form}").pack  # without "=" it would make them infinite


def _of_rows(inputs: dict[str, Array], singles: set[bool]) -> bool:
    """Whether it is a single row; raises where the inputs do not fit each other. The endpoint sees them too: nobody writes to them."""
    rows = {len(x) for x in inputs.values()}
    if len(rows) != 1 or len(singles) != 1 or 0 in rows:
        raise InputError("all inputs must have equally many rows, at least 1")
    for x in inputs.values():
        x.flags.writeable = False
    return singles.pop()


class _ByField:
    """A field for each input: rows, or one row, nested as the model's shape or flat."""

    def __init__(self, fields: Mapping[str, InputFacts]) -> None:
        kinds = {at: _nested(spec, 1 + max(1, len(spec.shape))) for at, spec in fields.items()}
        self._fields = [(at, spec, msgspec.json.Decoder(kinds[at]), _Flat(spec)) for at, spec in fields.items()]
        self._plain = _Plain(kinds, {at: kind for at, spec in fields.items() if (kind := _flat_rows(spec)) is not None})

    def __call__(self, body: bytes) -> Found:
        values: Sequence[Any] | None = self._plain(body)
        if values is None:
            top = decode(_OBJECT, body)
            missing = [at for at, *_ in self._fields if at not in top]
            if missing:
                raise InputError(f"the field {missing[0]!r} is missing")
            values = [decode(decoder, top[at]) for at, _, decoder, _ in self._fields]
            body = _ENCODER.encode(top)
        inputs, singles = {}, set()
        for (at, spec, _, flat), value in zip(self._fields, values, strict=True):
            found = flat(value)
            if found is not None and len(values) == 1:  # the usual case: nothing that could fail to fit it
                return Found({spec.name: found[0]}, body, found[1])
            inputs[spec.name], single = _rows(value, at, spec) if found is None else found
            singles.add(single)
        return Found(inputs, body, _of_rows(inputs, singles))


class _Flat:
    """Makes an array of a flat row of floats, or of several; numpy takes four times as long for lists.

    Gives the rows, and whether they are one row that was not in a list; None for what has another form, or is wrong.
    """

    def __init__(self, spec: InputFacts) -> None:
        features = math.prod(spec.shape)
        self._dtype, self._shape = spec.dtype, (-1, *spec.shape)
        self._pack = None if features < _FEWEST_PACKED else packer(spec.dtype, features)
        # Then a list with one flat row in it is one row, as the model has it.
        self._is_nested = spec.shape == (1, features)

    def __call__(self, value: Any) -> tuple[Array, bool] | None:
        if self._pack is None or type(value) is not list or not value:
            return None
        single = type(value[0]) is float
        try:
            if single or len(value) == 1:
                data = self._pack(*(value if single else value[0]))
                single = single or self._is_nested
            else:
                data = b"".join([self._pack(*row) for row in value])
        except (struct.error, TypeError, OverflowError):
            # another length, a list inside, nothing in the place of a number, or a number that is too large
            return None
        return np.frombuffer(data, self._dtype).reshape(self._shape), single  # of bytes: nobody can write to it


class _Plain:
    """The short way for bodies that have one reading as they are: no escapes, and each field's name once.

    Gives the fields' values, or None where the long way must decide (and tell what is wrong).

    Args:
        kinds: what may stand in each field.
        usual: what mostly stands there, for fields where that is known and faster to read.
    """

    def __init__(self, kinds: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
        self._names = [msgspec.json.encode(at) for at in kinds]
        self._decoders = [_fields_decoder({**kinds, **some}) for some in ([usual, {}] if usual else [{}])]

    def __call__(self, body: bytes) -> tuple[Any, ...] | None:
        if not (self._is_alone(body) or (b"\\" not in body and self._each_once(body))):
            return None
        for decoder in self._decoders:
            try:
                return msgspec.structs.astuple(decoder.decode(body))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
        return None

    def _is_alone(self, body: bytes) -> bool:
        """Whether the one field's name is the only string: the first quote and the last are found much faster than all are counted."""
        name, first = self._names[0], body.find(b'"')
        return len(self._names) == 1 and body.startswith(name, first) and body.rfind(b'"') == first + len(name) - 1

    def _each_once(self, body: bytes) -> bool:
        return body.count(b'"') == 2 * len(self._names) or all(body.count(name) == 1 for name in self._names)


def _fields_decoder(kinds: Mapping[str, Any]) -> msgspec.json.Decoder[Any]:
    fields = [(f"field_{i}", kind, msgspec.field(name=at)) for i, (at, kind) in enumerate(kinds.items())]
    return msgspec.json.Decoder(msgspec.defstruct("Fields", fields))


def _flat_rows(spec: InputFacts) -> Any:
    """Flat rows of so many numbers, read as tuples, which are packed as they are; None where there is nothing to gain, or the type would be huge."""
    features = math.prod(spec.shape)
    if _element(spec) is not float or not _FEWEST_TYPED <= features <= _MOST_TYPED:
        return None
    return list[tuple[(float,) * features]]  # type: ignore[misc]


def _nested(spec: InputFacts, lists: int) -> Any:
    """Numbers in so many lists at most."""
    element: Any = _element(spec)
    nested: Any = element
    for _ in range(lists):
        nested = element | list[nested]
    return nested


def _rows(value: Any, at: str, spec: InputFacts) -> tuple[Array, bool]:
    """Rows in any form, and whether they are one row that was not in a list."""
    x = _array(value, at, spec)
    _check_finite(x, at, spec)
    shape, features = spec.shape, math.prod(spec.shape)
    if x.shape == shape or (shape and x.shape == (features,)):
        return x.reshape(1, *shape), True
    if x.ndim and (x.shape[1:] == shape or x.shape[1:] == (features,)):
        return x.reshape(len(x), *shape), False
    raise InputError(f"{at!r}: expected rows of shape {list(shape)}, or one such row; found {list(x.shape)}")


class _ByColumn:
    """A field for each feature: single numbers, or lists of equal length."""

    def __init__(self, columns: tuple[str, ...], spec: InputFacts) -> None:
        self._columns, self._spec = columns, spec
        self._decoder = msgspec.json.Decoder(_nested(spec, 1))

    def __call__(self, body: bytes) -> Found:
        top = decode(_OBJECT, body)
        missing = [at for at in self._columns if at not in top]
        if missing:
            raise InputError(f"the field {missing[0]!r} is missing")
        parts = [decode(self._decoder, top[at]) for at in self._columns]
        x = _array(parts, self._columns[0], self._spec)
        _check_finite(x, self._columns[0], self._spec)
        rows = np.ascontiguousarray(x.reshape(len(parts), -1).T)
        inputs = {self._spec.name: rows}
        return Found(inputs, _ENCODER.encode(top), _of_rows(inputs, {x.ndim == 1}))


class _ByFunction:
    """The app's own function; what it cannot read is the client's fault."""

    def __init__(self, function: Function, specs: tuple[InputFacts, ...]) -> None:
        self._function, self._specs = function, {spec.name: spec for spec in specs}

    def __call__(self, body: bytes) -> Found:
        top = decode(_ANY, body)
        again = _ENCODER.encode(top)  # before the function could change anything
        given = self._given(top)
        if given.keys() != self._specs.keys():
            raise ServiceError(f"inputs must give {', '.join(self._specs)}, found {', '.join(given)}")
        inputs = {name: _fitted(given[name], spec) for name, spec in self._specs.items()}
        return Found(inputs, again, _of_rows(inputs, {False}))

    def _given(self, top: Json) -> dict[str, Array]:
        try:
            found = self._function(top)
            if isinstance(found, Mapping):
                return {name: np.asarray(x) for name, x in found.items()}
            return {next(iter(self._specs)): np.asarray(found)}
        except GarrisonError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError("the fields of the request cannot be read") from error


def _fitted(x: Array, spec: InputFacts) -> Array:
    if x.ndim != len(spec.shape) + 1 or x.shape[1:] != spec.shape:
        raise InputError(f"expected rows of shape {list(spec.shape)} for {spec.name!r}, found {list(x.shape)}")
    if not np.can_cast(x.dtype, spec.dtype, "same_kind"):
        raise InputError(f"expected {spec.dtype} for {spec.name!r}, found {x.dtype}")
    return np.array(x, dtype=spec.dtype, order="C")


def why_not(facts: ModelFacts, inputs: Fields, output: str, label: str | None, keep: Sequence[str]) -> str:
    """What is wrong with the names of fields; "" for nothing."""
    names, shape = [spec.name for spec in facts.inputs], facts.inputs[0].shape
    if isinstance(inputs, str) and len(names) != 1:
        return f"the model takes {', '.join(names)}; give inputs={{tensor: field}} for each of them"
    if isinstance(inputs, Mapping) and (set(inputs) != set(names) or len(set(inputs.values())) != len(names)):
        return f"inputs must name a field for each of {', '.join(names)}, found {', '.join(inputs)}"
    if is_columns(inputs):
        columns = tuple(inputs)  # type: ignore[arg-type]
        if len(names) != 1 or shape != (len(columns),) or len(set(columns)) != len(columns):
            return f"inputs names {len(columns)} features; the model's rows are {shape}"
    if label is not None and not facts.labels:
        return "label needs a model with class labels"
    made = {output, label, "classes", "uncertain"}
    if made & set(keep) or label in {output, "classes", "uncertain"}:
        return f"a field that the guard writes cannot be kept or stand twice: {', '.join(sorted(filter(None, made)))}"
    return ""
