"""Cuts an optimised graph into segments whose parameters are inputs.

A segment is a row of neighbouring nodes. It begins where few tensors pass from what came before (one, between the layers of most
networks; two inside a residual block). The graph is first cut as finely as it can be; once it is known which pieces' parameters stay in
memory, neighbours are joined again as far as the memory for the others allows, because every segment costs time.

    model = optimise(graph, files)               # what the runtime makes of a graph on this very processor
    pieces = cut(model, outputs)
    segments = pieces.joined(pinned, most)

The runtime's full optimisation depends on the processor (the order of a convolution's weights, above all), and is worth a third of the
time of a convolutional network; therefore it is made here, from the verified parameters, and not at sealing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from garrison.errors import GarrisonError, ManifestError
from garrison.runtime.onnx_wire import Model, Tensor, read_model, value_info, write_model
from garrison.runtime.parting import PART_BYTES, PART_MARK, parted

PARAMETER_BYTES = 4096
"""Tensors from this size on leave the graph. Smaller ones (biases, scales, shapes) stay in it and in memory."""
LEAST_BYTES = 256 * 1024
"""With fewer bytes in large tensors it does not pay to cut."""
FIRST_BYTES = 512 * 1024
"""What the first segment loads at most; each further one twice as much as the one before."""
MOST_PASSING = 4
"""A cut is made only where at most this many tensors pass."""

_ELEMENTS = {
    f"tensor({name})": number
    for name, number in (
        ("float", 1), ("uint8", 2), ("int8", 3), ("uint16", 4), ("int16", 5), ("int32", 6), ("int64", 7), ("bool", 9),
        ("float16", 10), ("double", 11), ("uint32", 12), ("uint64", 13),
    )
}  # fmt: skip


class WholeError(GarrisonError):
    """Why a graph is run whole. Never leaves runtime and sealing: it is no fault."""

    code = "runtime.whole"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a graph.

    Attributes:
        graph: an ONNX model; its large parameters are inputs.
        takes: names of tensors that come from the request or from earlier segments.
        gives: names of tensors for later segments, and of answers.
        pinned: parameters that stay in memory.
        streamed: parameters that are loaded at every run.
    """

    graph: bytes
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    pinned: tuple[Tensor, ...]
    streamed: tuple[Tensor, ...]


def session_options() -> Any:
    """Options that all sessions share."""
    options = ort.SessionOptions()
    # One thread each: several pools would spin against each other, and requests are batched instead.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def optimise(graph: bytes, files: Mapping[str, bytes], part_bytes: int = PART_BYTES) -> Model:
    """What the runtime makes of a graph on this processor, with its parameters in it.

    Args:
        graph: an ONNX model.
        files: its parameters, by the file names that it refers to.
        part_bytes: convolutions with more are parted.

    Raises:
        WholeError: the runtime cannot write its result (two gigabytes are the most).
    """
    options = session_options()
    if files:
        names = list(files)
        options.add_external_initializers_from_files_in_memory(
            names, [files[name] for name in names], [len(files[name]) for name in names]
        )
    try:
        with _scratch() as path:
            options.optimized_model_filepath = path
            ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            return parted(read_model(memoryview(Path(path).read_bytes())), part_bytes)
    except Exception as error:
        raise WholeError(f"the runtime cannot write down what it makes of it ({type(error).__name__})") from error


@contextmanager
def _scratch() -> Iterator[str]:
    """A path to write to: memory of this process, so that there is no file that another could change."""
    if not hasattr(os, "memfd_create"):  # not on Linux: models are sealed there, but no enclave runs
        with tempfile.TemporaryDirectory() as folder:
            yield str(Path(folder) / "optimised.onnx")
        return
    descriptor = os.memfd_create("optimised", os.MFD_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def cut(model: Model, outputs: Sequence[str], least_bytes: int | None = None) -> Pieces:
    """Cut an optimised graph as finely as it can be.

    Args:
        model: see `optimise`.
        outputs: the answers that are wanted.
        least_bytes: below this it is not cut; None for `LEAST_BYTES`.

    Raises:
        WholeError: it does not pay, or cannot be done.
    """
    large = {t.name: t for t in model.constants.values() if _is_large(t)}
    used = {name for node in model.nodes for name in node.uses}
    size = sum(_size(t) for name, t in large.items() if name in used)
    least = LEAST_BYTES if least_bytes is None else least_bytes
    if size == 0:
        raise WholeError("its parameters lie in its nodes (a tree ensemble, say), or are all small")
    if size < least:
        raise WholeError(
            f"its parameters are small ({size:,} bytes): below {least:,} it does not pay to load them on demand"
        )
    made = {name for node in model.nodes for name in node.makes}
    if set(outputs) - made:
        raise WholeError("an answer is an input or a constant")
    flow = _Flow(model, large, frozenset(outputs))
    elements = _elements(model, {name for names in flow.passing for name in names} - set(outputs))
    ranges = tuple(_ranges(flow, elements))
    if len(ranges) == 1:
        raise WholeError("there is no place where few tensors pass")
    return Pieces(model, flow, elements, ranges)


class Pieces:
    """A graph, cut as finely as it can be.

    Attributes:
        sizes: bytes of each piece's large parameters, as they are laid out in memory.
        kept_bytes: bytes of the small parameters, which stay in the graph and in memory.
    """

    def __init__(
        self, model: Model, flow: _Flow, elements: Mapping[str, int], ranges: tuple[tuple[int, int], ...]
    ) -> None:
        self._model, self._flow, self._elements, self._ranges = model, flow, elements, ranges
        self.sizes = [laid_out(flow.parameters(start, end).values()) for start, end in ranges]
        self.kept_bytes = sum(
            _size(t) if t.data is not None else len(t.raw) for t in model.constants.values() if not _is_large(t)
        )

    def joined(self, pinned: Sequence[bool], most: int, first: int = FIRST_BYTES) -> tuple[Segment, ...]:
        """The segments, in the order in which they run.

        Args:
            pinned: by piece, whether its parameters stay in memory.
            most: bytes that a segment may load; at least the size of each piece that is not pinned.
            first: bytes that the first one may load, the second twice as many, and so on: nothing can be computed until the first is there.
        """
        groups: list[list[int]] = []
        used, allowed = 0, min(most, first)
        for i, size in enumerate(self.sizes):
            loads = 0 if pinned[i] else size
            if not groups or used + loads > allowed:
                if groups:
                    allowed = min(most, 2 * allowed)
                groups.append([])
                used = 0
            groups[-1].append(i)
            used += loads
        return tuple(self._segment(group, pinned) for group in groups)

    def _segment(self, group: Sequence[int], pinned: Sequence[bool]) -> Segment:
        model, flow = self._model, self._flow
        start, end = self._ranges[group[0]][0], self._ranges[group[-1]][1]
        parameters = flow.parameters(start, end)
        staying = {name for i in group if pinned[i] for name in flow.parameters(*self._ranges[i])}
        nodes = model.nodes[start:end]
        made = {name for node in nodes for name in node.makes}
        used = {name for node in nodes for name in node.uses} - made
        asked = sorted(used & model.inputs.keys())
        passed = sorted(used & (flow.passing[start - 1] if start else frozenset()))
        later = flow.passing[end - 1] if end < len(model.nodes) else frozenset()
        gives = sorted(made & (later | flow.outputs))
        inputs = [bytes(model.inputs[name]) for name in asked]
        inputs += [value_info(name, self._elements[name]) for name in passed]
        inputs += [value_info(t.name, t.element, t.shape) for t in parameters.values()]
        outputs = [bytes(model.outputs[name]) if name in model.outputs else value_info(name) for name in gives]
        kept = [t for name, t in model.constants.items() if name in used and name not in flow.large]
        return Segment(
            graph=write_model(model.head, nodes, inputs, outputs, kept),
            takes=(*asked, *passed),
            gives=tuple(gives),
            pinned=tuple(t for name, t in parameters.items() if name in staying),
            streamed=tuple(t for name, t in parameters.items() if name not in staying),
        )


def _is_large(tensor: Tensor) -> bool:
    return tensor.data is not None and tensor.dtype is not None and len(tensor.data) >= PARAMETER_BYTES


def _size(tensor: Tensor) -> int:
    return 0 if tensor.data is None else len(tensor.data)


class _Flow:
    """Which tensors pass between which nodes.

    Attributes:
        passing: by node, the names of the tensors made up to it that a later node reads.
    """

    def __init__(self, model: Model, large: Mapping[str, Tensor], outputs: frozenset[str]) -> None:
        self.nodes, self.large, self.outputs = model.nodes, large, outputs
        last = {name: i for i, node in enumerate(model.nodes) for name in node.uses}
        self.last = last
        self.passing: list[frozenset[str]] = []
        alive: set[str] = set()
        for i, node in enumerate(model.nodes):
            alive |= set(node.makes)
            alive = {name for name in alive if last.get(name, -1) > i}
            self.passing.append(frozenset(alive))

    def parameters(self, start: int, end: int) -> dict[str, Tensor]:
        """The large parameters that nodes read, in order."""
        names = (name for node in self.nodes[start:end] for name in sorted(node.uses) if name in self.large)
        return {name: self.large[name] for name in names}


def _ranges(flow: _Flow, elements: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """A piece ends at the last possible place before a node that brings large parameters."""
    start, place, latest = 0, None, -1
    for i, node in enumerate(flow.nodes):
        if not node.uses.isdisjoint(flow.large):
            if place is not None:
                yield start, place
                start, place = place, None
            latest = i
        names = flow.passing[i]
        if (
            len({name.partition(PART_MARK)[0] for name in names}) <= MOST_PASSING
            and names <= elements.keys()
            and latest >= start
        ):
            place = i + 1
    yield start, len(flow.nodes)


def _elements(model: Model, names: set[str]) -> dict[str, int]:
    """The element types of tensors between nodes, as the runtime infers them. Its file does not hold them."""
    told = set(names) - model.outputs.keys()
    inputs = [*map(bytes, model.inputs.values())]
    inputs += [value_info(t.name, t.element, t.shape) for t in model.constants.values() if _is_large(t)]
    kept = [t for t in model.constants.values() if not _is_large(t)]
    outputs = [*map(bytes, model.outputs.values()), *(value_info(name) for name in sorted(told))]
    try:
        session = open_segment(write_model(model.head, model.nodes, inputs, outputs, kept))
    except ManifestError as error:
        raise WholeError("the runtime does not take its parameters as inputs") from error
    found = {o.name: _ELEMENTS.get(o.type) for o in session.get_outputs()}
    return {name: element for name, element in found.items() if element is not None}


def open_segment(graph: bytes) -> Any:
    """A session over a graph that is optimised already.

    Raises:
        ManifestError: the runtime does not take it.
    """
    options = session_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(
        "session.use_env_allocators", "1"
    )  # one pool for all segments' intermediate results
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ManifestError(f"the runtime cannot load a segment: {type(error).__name__}: {error}") from error


ALIGNMENT_BYTES = 64
"""A cache line and the widest vector register; parameters that do not begin at one cost a fifth of the time."""


def aligned(size: int) -> int:
    """The next multiple of `ALIGNMENT_BYTES`."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def laid_out(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors take, each begun at a multiple of `ALIGNMENT_BYTES`."""
    return sum(aligned(_size(tensor)) for tensor in tensors)


def view(memory: memoryview, tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor over the bytes of a buffer, without a copy."""
    if tensor.dtype is None:
        raise ManifestError(f"tensor {tensor.name!r} has a type that numpy does not know")
    return np.frombuffer(memory, dtype=tensor.dtype).reshape(tensor.shape)
