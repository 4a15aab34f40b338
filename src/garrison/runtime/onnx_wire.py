"""Reads and writes the few fields of an ONNX file that cutting a graph needs, without the `onnx` package.

The serving core has no `onnx`; what it reads here is only what the runtime itself has just written. A message of the protocol-buffer
encoding is a row of (field number, value); what is not understood is copied as it is. Field numbers: onnx.proto3 of ONNX 1.x.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from garrison.errors import ManifestError

Field = tuple[int, int | memoryview]

_VARINT, _WIDE, _BYTES, _NARROW = 0, 1, 2, 5
_MORE, _LOW, _MOST_SHIFT = 0x80, 0x7F, 63
_EXTERNAL = 1

MODEL_GRAPH = 7
_NODE, _GRAPH_NAME, _INITIALIZER, _INPUT, _OUTPUT, _SPARSE = 1, 2, 5, 11, 12, 15
_OPSET, _OPSET_DOMAIN, _OPSET_VERSION = 8, 1, 2
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATION, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER, _ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_TYPE = 1, 3, 6, 11, 20
_INTEGER_TYPE, _INT64 = 2, 7
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA, _LOCATION = 1, 2, 8, 9, 14

DTYPES: dict[int, np.dtype[np.generic]] = {
    number: np.dtype(name)
    for number, name in {
        1: "float32",
        2: "uint8",
        3: "int8",
        4: "uint16",
        5: "int16",
        6: "int32",
        7: "int64",
        9: "bool",
        10: "float16",
        11: "float64",
        12: "uint32",
        13: "uint64",
    }.items()
}
"""ONNX element types by number, those that numpy has."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
        raw: the message.
        uses: names of the tensors that it reads, also those that its subgraphs take from outside.
        makes: names of the tensors that it writes.
    """

    raw: memoryview
    uses: frozenset[str]
    makes: tuple[str, ...]

    @property
    def operation(self) -> str:
        return self._one(_NODE_OPERATION)

    @property
    def domain(self) -> str:
        return self._one(_NODE_DOMAIN)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it reads, in order; "" where an input is left out."""
        return tuple(_text(value) for number, value in _fields(self.raw) if number == _NODE_INPUT)

    def integer(self, name: str, default: int) -> int:
        """An attribute that is a number."""
        for number, value in _fields(self.raw):
            if number == _NODE_ATTRIBUTE:
                parts = dict(_fields(_view(value)))
                found = parts.get(_ATTRIBUTE_INTEGER)
                if _text(parts[_ATTRIBUTE_NAME]) == name and isinstance(found, int):
                    return found
        return default

    def renamed(self, inputs: Sequence[str], outputs: Sequence[str]) -> Node:
        """The same operation over other tensors."""
        kept = [f for f in _fields(self.raw) if f[0] not in {_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME}]
        return _written(inputs, outputs, kept)

    def _one(self, wanted: int) -> str:
        return next((_text(value) for number, value in _fields(self.raw) if number == wanted), "")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A constant of the graph.

    Attributes:
        raw: the message.
        data: its numbers, little-endian; None where they are kept in another form (small lists of numbers, strings).
        dtype: None where numpy has no such type.
    """

    name: str
    raw: memoryview
    shape: tuple[int, ...]
    element: int
    data: memoryview | None

    @property
    def dtype(self) -> np.dtype[np.generic] | None:
        return DTYPES.get(self.element)


@dataclass(frozen=True, slots=True)
class Model:
    """A graph taken apart.

    Attributes:
        head: all of the model's fields but the graph.
        nodes: in an order in which they can be run.
        inputs, outputs: by name, the message of each.
        constants: by name.
    """

    head: tuple[Field, ...]
    nodes: tuple[Node, ...]
    inputs: dict[str, memoryview]
    outputs: dict[str, memoryview]
    constants: dict[str, Tensor]


def read_model(data: memoryview) -> Model:
    """Take a model apart; nothing is copied.

    Raises:
        ManifestError: not such a model.
    """
    try:
        fields = list(_fields(data))
        graph = next(_view(value) for number, value in fields if number == MODEL_GRAPH)
        parts = [(number, _view(value)) for number, value in _fields(graph) if isinstance(value, memoryview)]
        if any(number == _SPARSE for number, _ in parts):
            raise ValueError("a sparse constant")
        constants = [_tensor(value) for number, value in parts if number == _INITIALIZER]
        return Model(
            head=tuple(field for field in fields if field[0] != MODEL_GRAPH),
            nodes=tuple(_node(value) for number, value in parts if number == _NODE),
            inputs={_name(value): value for number, value in parts if number == _INPUT},
            outputs={_name(value): value for number, value in parts if number == _OUTPUT},
            constants={tensor.name: tensor for tensor in constants},
        )
    except (ValueError, IndexError, StopIteration, RecursionError) as error:
        raise ManifestError(f"the graph cannot be taken apart: {error}") from error


def write_model(
    head: Sequence[Field],
    nodes: Sequence[Node],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    kept: Sequence[Tensor],
) -> bytes:
    """A model of these parts. `inputs` and `outputs` are messages, see `value_info`."""
    graph = b"".join(
        (
            *(_field(_NODE, node.raw) for node in nodes),
            _field(_GRAPH_NAME, b"segment"),
            *(_field(_INITIALIZER, tensor.raw) for tensor in kept),
            *(_field(_INPUT, value) for value in inputs),
            *(_field(_OUTPUT, value) for value in outputs),
        )
    )
    return b"".join((*(_field(number, value) for number, value in head), _field(MODEL_GRAPH, graph)))


def value_info(name: str, element: int | None = None, shape: tuple[int, ...] | None = None) -> bytes:
    """The description of an input or output; of an output the name suffices, the rest is inferred."""
    if element is None:
        return _field(1, name.encode())
    tensor = _field(1, element)
    if shape is not None:
        tensor += _field(2, b"".join(_field(1, _field(1, size)) for size in shape))
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def make_node(operation: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int) -> Node:
    """An operation of ONNX itself; its attributes are numbers."""
    fields: list[Field] = [(_NODE_OPERATION, memoryview(operation.encode()))]
    for name, value in attributes.items():
        parts = ((_ATTRIBUTE_NAME, name.encode()), (_ATTRIBUTE_INTEGER, value), (_ATTRIBUTE_TYPE, _INTEGER_TYPE))
        fields.append((_NODE_ATTRIBUTE, memoryview(b"".join(_field(*part) for part in parts))))
    return _written(inputs, outputs, fields)


def tensor(name: str, shape: Sequence[int], element: int, data: bytes | memoryview) -> Tensor:
    """A constant of these bytes, which are copied."""
    dims = (_field(_DIMS, size) for size in shape)
    told = (_field(_DATA_TYPE, element), _field(_TENSOR_NAME, name.encode()), _field(_RAW_DATA, data))
    return _tensor(memoryview(b"".join((*dims, *told))))


def integers(name: str, values: Sequence[int]) -> Tensor:
    """A constant row of whole numbers."""
    return tensor(name, (len(values),), _INT64, np.asarray(values, "<i8").tobytes())


def opset(model: Model, domain: str) -> int:
    """The version of a domain's operations that a model asks for; 0 where it names none."""
    for number, value in model.head:
        if number == _OPSET:
            parts = dict(_fields(_view(value)))
            version = parts.get(_OPSET_VERSION, 0)
            if _text(parts.get(_OPSET_DOMAIN, memoryview(b""))) == domain and isinstance(version, int):
                return version
    return 0


def _written(inputs: Sequence[str], outputs: Sequence[str], fields: Sequence[Field]) -> Node:
    names = [_field(_NODE_INPUT, n.encode()) for n in inputs] + [_field(_NODE_OUTPUT, n.encode()) for n in outputs]
    return _node(memoryview(b"".join((*names, *(_field(*field) for field in fields)))))


def _node(raw: memoryview) -> Node:
    uses: set[str] = set()
    makes: list[str] = []
    for number, value in _fields(raw):
        if number == _NODE_INPUT:
            uses.add(_text(value))
        elif number == _NODE_OUTPUT:
            makes.append(_text(value))
        elif number == _NODE_ATTRIBUTE:
            uses |= _captured(_view(value))
    return Node(raw, frozenset(uses - {""}), tuple(name for name in makes if name))


def _captured(attribute: memoryview) -> set[str]:
    """Names that subgraphs take from outside; their own names are unique over the whole model, so taking too many does no harm."""
    names: set[str] = set()
    for number, value in _fields(attribute):
        if number not in {_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS}:
            continue
        own: set[str] = set()
        for inner, part in _fields(_view(value)):
            if inner == _NODE:
                node = _node(_view(part))
                names |= node.uses
                own |= set(node.makes)
            elif inner == _INITIALIZER:
                own.add(_tensor(_view(part)).name)
            elif inner == _INPUT:
                own.add(_name(_view(part)))
            elif inner == _OUTPUT:
                names.add(_name(_view(part)))
        names -= own
    return names


def _tensor(raw: memoryview) -> Tensor:
    name, element, data, shape = "", 0, None, []
    for number, value in _fields(raw):
        if number == _DIMS:
            shape += [value] if isinstance(value, int) else list(_packed(value))
        elif number == _DATA_TYPE and isinstance(value, int):
            element = value
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number == _RAW_DATA:
            data = _view(value)
        elif number == _LOCATION and value == _EXTERNAL:
            raise ValueError("a constant lies in another file")
    return Tensor(name, raw, tuple(shape), element, data)


def _packed(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _name(value: memoryview) -> str:
    return next((_text(part) for number, part in _fields(value) if number == 1), "")


def _text(value: int | memoryview) -> str:
    return bytes(_view(value)).decode()


def _view(value: int | memoryview) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("a number where bytes were expected")  # noqa: TRY004  what a file holds is no type error
    return value


def _fields(data: memoryview) -> Iterator[Field]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind in {_WIDE, _NARROW}:
            length = 8 if kind == _WIDE else 4
        else:
            raise ValueError(f"an encoding of kind {kind}")
        if at + length > len(data):
            raise ValueError("it ends too early")
        if kind == _BYTES:  # numbers of fixed width stand only in messages that are copied whole
            yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & _LOW) << shift
        if not byte & _MORE:
            return value, at
        shift += 7
        if shift > _MOST_SHIFT:
            raise ValueError("a number of more than ten bytes")


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > _LOW:
        out.append(value & _LOW | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: int | bytes | memoryview) -> bytes:
    if isinstance(value, int):
        return _encoded(number << 3 | _VARINT) + _encoded(value)
    return b"".join((_encoded(number << 3 | _BYTES), _encoded(len(value)), value))
