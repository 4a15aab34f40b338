"""Takes the parameters out of an ONNX graph and lays them into chunks.

The graph keeps, in place of each large tensor, ONNX's own reference to external data: the chunk's file name, offset and length.
The runtime is handed the chunks as buffers in memory, so that a chunk can be checked before it is used.

    graph, chunks = split(model)        # chunks[0].file == "parameters/0000.bin"

Stay in the graph file, signed like everything else: small tensors, shape constants, tensors inside subgraphs (If, Loop), and
what lies in a node's attributes, such as a tree ensemble. Equal models give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from garrison.bundle.manifest import PARAMETER_FOLDER, ChunkEntry, TensorEntry
from garrison.crypto.canonical import sha256_hex
from garrison.errors import MissingExtraError
from garrison.hardening.graph_walk import all_graphs

try:
    import onnx
    from onnx import numpy_helper
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

CHUNK_BYTES = 1024 * 1024
"""A chunk is closed before it would grow beyond this; one larger tensor is a chunk of its own."""
ALIGNMENT_BYTES = 64
"""Tensors begin at multiples of this: a cache line, and the widest vector register."""
SMALL_BYTES = 64
SMALL_WHOLE_NUMBER_BYTES = 1024
"""Tensors of whole numbers may be shapes or axes, which the runtime must see when it plans the graph."""

_REAL = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16})
_WHOLE = frozenset(
    {
        onnx.TensorProto.BOOL,
        *(getattr(onnx.TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)),
    }
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A file of parameters: its path in the bundle, its bytes, and what lies where in it."""

    file: str
    data: bytes
    tensors: tuple[TensorEntry, ...]

    def entry(self) -> ChunkEntry:
        return ChunkEntry(file=self.file, size=len(self.data), sha256=sha256_hex(self.data), tensors=self.tensors)


def split(model: onnx.ModelProto, first: int = 0) -> tuple[bytes, tuple[Chunk, ...]]:
    """The graph without its parameters, and the parameters.

    Args:
        model: in memory, without external data; it is not changed.
        first: number of the first chunk, where another graph's chunks come before.

    Returns:
        The graph's bytes, and the chunks in order.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    strip(changed)
    _lift_constants(changed.graph)
    chunks = []
    for number, group in enumerate(_groups(changed.graph.initializer), start=first):
        chunks.append(_lay(group, f"{PARAMETER_FOLDER}/{number:04d}.bin"))
    return changed.SerializeToString(deterministic=True), tuple(chunks)


def strip(model: onnx.ModelProto) -> None:
    """Drop what only tells about the machine on which the model was made: comments, stack traces, paths."""
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in all_graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            part.doc_string = ""
            del part.metadata_props[:]


def _lift_constants(graph: onnx.GraphProto) -> None:
    """Large tensors in Constant nodes become initializers, so that they can leave the graph."""
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
        if node.op_type != "Constant" or value is None or not _leaves(value):
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def _leaves(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type in _REAL:
        return _size(tensor) >= SMALL_BYTES
    return tensor.data_type in _WHOLE and _size(tensor) >= SMALL_WHOLE_NUMBER_BYTES


def _size(tensor: onnx.TensorProto) -> int:
    width: int = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * width


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _groups(tensors: Iterable[onnx.TensorProto]) -> Iterator[list[onnx.TensorProto]]:
    group: list[onnx.TensorProto] = []
    used = 0
    for tensor in tensors:
        if not _leaves(tensor):
            continue
        if group and _aligned(used) + _size(tensor) > CHUNK_BYTES:
            yield group
            group, used = [], 0
        group.append(tensor)
        used = _aligned(used) + _size(tensor)
    if group:
        yield group


def _lay(group: list[onnx.TensorProto], file: str) -> Chunk:
    data = bytearray()
    entries = []
    for tensor in group:
        raw = _raw_bytes(tensor)
        data.extend(bytes(_aligned(len(data)) - len(data)))
        entry = TensorEntry(name=tensor.name, offset=len(data), length=len(raw))
        data.extend(raw)
        entries.append(entry)
        _refer(tensor, file, entry)
    return Chunk(file, bytes(data), tuple(entries))


def _raw_bytes(tensor: onnx.TensorProto) -> bytes:
    array = numpy_helper.to_array(tensor)
    raw: bytes = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return raw


def _refer(tensor: onnx.TensorProto, file: str, entry: TensorEntry) -> None:
    stub = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    stub.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", str(entry.offset)), ("length", str(entry.length))):
        stub.external_data.add(key=key, value=value)
    tensor.CopyFrom(stub)
