"""Parts a convolution along its output channels, so that its weights can come in a piece at a time.

    model = parted(optimise(graph, files))

A layer of 9 MB needs a buffer of 9 MB when it is loaded whole: more than the processor's near cache holds, and memory that could keep other
parameters. One output channel needs nothing of the others, so the same layer is several convolutions over the same input whose outputs are
joined. Each number is computed from the same terms by the same kernel. Only convolutions in the runtime's blocked form (`com.microsoft.nchwc`) are parted:
in that form a row of channels is one stretch of memory, in the weights as in the answer, at every batch size, and nothing is computed twice.

    before   y = Conv(x, W, b, s)                      s: a tensor that is added, may be absent
    after    s0, s1, ... = Split(s);  y0 = Conv(x, W0, b0, s0);  y1 = Conv(x, W1, b1, s1);  ...;  y = Concat(y0, y1, ...)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from garrison.runtime.onnx_wire import Model, Node, Tensor, integers, make_node, opset, tensor

PART_BYTES = 1280 * 1024
"""Weights of a part, at most, where its channels allow: about what the near cache of a server's core holds."""
NOT_PARTED = 1 << 62
"""For `part_bytes`: every layer whole. On one core that is faster: nothing is loaded beside, and each part is a call of its own."""
CHANNELS = 64
"""A part has a multiple of so many channels: the runtime's kernels compute four blocks of 16 at a time (or eight of 8)."""

PART_MARK = "/part "
"""In the name of a tensor between parts, after the name of the tensor that they make together."""

_BLOCKED = "com.microsoft.nchwc"
_LEAST_OPSET = 13
"""From here on `Split` takes the sizes as an input."""
_BIAS, _ADDED = 2, 3


def parted(model: Model, part_bytes: int = PART_BYTES) -> Model:
    """The same graph, with its large convolutions in parts.

    Args:
        model: optimised; its weights in it.
        part_bytes: above this a convolution is parted.
    """
    if max(opset(model, ""), opset(model, "ai.onnx")) < _LEAST_OPSET:
        return model
    constants = dict(model.constants)
    nodes = [part for node in model.nodes for part in _parts(node, constants, part_bytes)]
    return replace(model, nodes=tuple(nodes), constants=constants)


def _parts(node: Node, constants: dict[str, Tensor], part_bytes: int) -> Iterator[Node]:
    weights = _weights(node, constants)
    step = 0 if weights is None else _step(weights, part_bytes)
    if weights is None or not 0 < step < weights.shape[0]:
        yield node
        return
    (made,), names = node.makes, node.inputs
    starts = range(0, weights.shape[0], step)
    parts = [f"{made}{PART_MARK}{i}" for i in range(len(starts))]
    added: list[str] = []
    if len(names) > _ADDED and names[_ADDED]:
        added = [f"{part}/added" for part in parts]
        sizes = [min(step, weights.shape[0] - start) for start in starts]
        split = integers(f"{made}/sizes", sizes)
        constants[split.name] = split
        yield make_node("Split", (names[_ADDED], split.name), added, axis=1)
    for i, (part, start) in enumerate(zip(parts, starts, strict=True)):
        rows = slice(start, start + step)
        inputs = [names[0], _sliced(constants, weights, rows)]
        if len(names) > _BIAS:
            inputs.append(_sliced(constants, constants[names[_BIAS]], rows) if names[_BIAS] else "")
        yield node.renamed((*inputs, *added[i : i + 1]), (part,))
    yield make_node("Concat", parts, (made,), axis=1)


def _weights(node: Node, constants: Mapping[str, Tensor]) -> Tensor | None:
    """The weights of a convolution that can be parted."""
    if (node.domain, node.operation) != (_BLOCKED, "Conv") or len(node.makes) != 1 or node.integer("group", 1) != 1:
        return None
    names = node.inputs
    weights = constants.get(names[1])
    biased = len(names) > _BIAS and names[_BIAS]
    bias = constants.get(names[_BIAS]) if biased else None
    if weights is None or weights.data is None or weights.dtype is None or not weights.shape:
        return None
    if biased and (bias is None or bias.data is None or bias.shape != weights.shape[:1]):
        return None
    return weights


def _step(weights: Tensor, part_bytes: int) -> int:
    """Output channels of a part; 0 where they do not come in whole groups."""
    channels = weights.shape[0]
    if weights.data is None or channels % CHANNELS or len(weights.data) <= part_bytes:
        return 0
    group = len(weights.data) // channels * CHANNELS
    return max(1, part_bytes // group) * CHANNELS


def _sliced(constants: dict[str, Tensor], whole: Tensor, rows: slice) -> str:
    """The name of some channels of a constant, which is made where it is not there yet."""
    name = f"{whole.name}/{rows.start}:{rows.stop}"
    if name not in constants and whole.data is not None:
        row = len(whole.data) // whole.shape[0]
        data = whole.data[rows.start * row : rows.stop * row]
        constants[name] = tensor(name, (len(data) // row, *whole.shape[1:]), whole.element, data)
    return name
