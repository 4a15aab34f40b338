"""Takes out of a traced graph the safeguards that nothing here can need.

The tracer writes every operation so that it is right for any tensor: one without elements, one with NaN, one of any rank. Each safeguard is a few more
nodes, and for a row of a small model the runtime is longer at them than at the arithmetic. What goes, and why the answers stay the same:

    the tracer writes                                   left            because
    If(Size(x) == 0, ..., else)                         else            a batch has at least one row, and a row at least one number
    Einsum("ij,jk->ik", a, b)                           MatMul(a, b)    it is the same product, and the runtime is faster at it
    Squeeze(ReduceMax(Unsqueeze(x)))                    ReduceMax(x)    nothing is reduced over the appended dimension; a fifth of the time
    Where(any NaN in row, NaN, extremum of row), and
      the row is a softmax's (`without_nan_guard`)      the extremum    such a row is NaN as a whole, and its maximum above no threshold
      all that is seen of it is a comparison
      and `sum of row == sum of row`                    the extremum    the sum of a row with NaN is NaN, and that test is false

The last guard is there because the runtime's extremum does not hand NaN on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from garrison.errors import MissingExtraError
from garrison.types import Array

try:
    import onnx
    from onnx import numpy_helper
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

_COMPARISONS = ("GreaterOrEqual", "LessOrEqual", "Greater", "Less")


def unbranch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for tensors that are not empty. Inputs that nothing reads are dropped."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    producers = _Producers(graph.node)
    nodes = [plain for node in graph.node for plain in _without_branch(node, producers)]
    _reduce_directly(nodes)
    _unguard_beside_sums(nodes, {output.name for output in graph.output})
    kept = _keep_used(graph, nodes)
    read = {name for node in kept for name in _reads(node)}
    inputs = [value for value in graph.input if value.name in read]
    del graph.input[:]
    graph.input.extend(inputs)
    return changed


def without_nan_guard(graph: onnx.GraphProto, tensor: str) -> None:
    """Where a softmax over rows makes the tensor, take the guard against NaN from its extrema, in place."""
    producers = _Producers(graph.node)
    softmax = producers.find(tensor, "Softmax")
    if softmax is None or not _is_over_rows(softmax):
        return
    for node in graph.node:
        test = _nan_test(node, producers)
        if test is not None and test.rows == tensor:
            _unguard(node)
    _keep_used(graph, list(graph.node))


class _Producers:
    """Finds the node that makes a tensor."""

    def __init__(self, nodes: Iterable[onnx.NodeProto]) -> None:
        self._by_output = {name: node for node in nodes for name in node.output}

    def direct(self, name: str) -> onnx.NodeProto | None:
        """The very node; None for an input or a parameter."""
        return self._by_output.get(name)

    def find(self, name: str, operator: str) -> onnx.NodeProto | None:
        """The node behind identities, if it is one of that operator."""
        node = self.direct(name)
        while node is not None and node.op_type == "Identity":
            node = self.direct(node.input[0])
        return node if node is not None and node.op_type == operator else None

    def constant(self, name: str) -> Array | None:
        """The value of a tensor that is a constant of the graph."""
        node = self.direct(name)
        if node is None or node.op_type != "Constant" or not node.attribute[0].HasField("t"):
            return None
        found: Array = numpy_helper.to_array(node.attribute[0].t)
        return found


# Branches on emptiness, and Einstein sums.


def _without_branch(node: onnx.NodeProto, producers: _Producers) -> list[onnx.NodeProto]:
    """What stands in the place of one node."""
    if node.op_type == "Einsum" and _is_matrix_product(node):
        return [onnx.helper.make_node("MatMul", node.input, node.output)]
    if node.op_type == "If" and _asks_for_emptiness(node, producers):
        return _else_branch(node)
    return [node]


def _is_matrix_product(einsum: onnx.NodeProto) -> bool:
    """Whether its equation is "ij,jk->ik", in any letters."""
    equation = next(a.s.decode() for a in einsum.attribute if a.name == "equation").replace(" ", "")
    left, comma, rest = equation.partition(",")
    right, arrow, result = rest.partition("->")
    if not comma or not arrow or len(left) != 2 or len(right) != 2 or len({*left, *right}) != 3:
        return False
    return bool(left[1] == right[0] and result == left[0] + right[1])


def _asks_for_emptiness(branch: onnx.NodeProto, producers: _Producers) -> bool:
    """Whether its condition is `size == 0`."""
    test = producers.direct(branch.input[0])
    if test is None or test.op_type != "Equal":
        return False
    sides = [side for side in map(producers.direct, test.input) if side is not None]
    return sum(_is_size(side, producers) for side in sides) == 1 and any(map(_is_zero, sides))


def _is_size(node: onnx.NodeProto, producers: _Producers) -> bool:
    """Of a tensor, or of two as one product, as a matrix product asks."""
    if node.op_type == "Size":
        return True
    factors = [producers.direct(name) for name in node.input] if node.op_type == "Mul" else []
    return bool(factors) and all(factor is not None and factor.op_type == "Size" for factor in factors)


def _is_zero(node: onnx.NodeProto) -> bool:
    if node.op_type != "Constant":
        return False
    attribute = node.attribute[0]
    value = numpy_helper.to_array(attribute.t) if attribute.HasField("t") else np.asarray(attribute.i)
    return value.size == 1 and not value.any()


def _else_branch(branch: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Its nodes, and what gives their results the names of the branch's."""
    inner = next(a.g for a in branch.attribute if a.name == "else_branch")
    names = zip(inner.output, branch.output, strict=True)
    return [*inner.node, *(onnx.helper.make_node("Identity", [found.name], [wanted]) for found, wanted in names)]


# Detours of extrema.


def _reduce_directly(nodes: Sequence[onnx.NodeProto]) -> None:
    """Reduce rows as they are, in place: without the dimension of one that the tracer appends before and takes off afterwards."""
    producers = _Producers(nodes)
    for squeeze in nodes:
        found = _detour(squeeze, producers)
        if found is None:
            continue
        reduction, rows = found
        squeeze.op_type = reduction.op_type
        axes = reduction.input[1]
        del squeeze.input[:]
        squeeze.input.extend((rows, axes))
        squeeze.attribute.extend(reduction.attribute)


def _detour(squeeze: onnx.NodeProto, producers: _Producers) -> tuple[onnx.NodeProto, str] | None:
    """The extremum before a `Squeeze` of the last dimension, and the tensor before the `Unsqueeze` that appended it; None where it is not so."""
    if squeeze.op_type != "Squeeze" or not _is_last(squeeze, producers):
        return None
    before = squeeze.input[0]
    reduction = producers.find(before, "ReduceMax") or producers.find(before, "ReduceMin")
    if reduction is None or len(reduction.input) < 2 or any(a.i for a in reduction.attribute if a.name == "keepdims"):
        return None
    unsqueeze = producers.find(reduction.input[0], "Unsqueeze")
    if unsqueeze is None:
        return None
    appended, axes = (producers.constant(node.input[1]) for node in (unsqueeze, reduction))
    if appended is None or axes is None or appended.size != 1 or not ((axes >= 0) & (axes < appended)).all():
        return None
    return reduction, unsqueeze.input[0]


def _is_last(squeeze: onnx.NodeProto, producers: _Producers) -> bool:
    axes = producers.constant(squeeze.input[1]) if len(squeeze.input) > 1 else None
    return axes is not None and np.array_equal(axes, [-1])


# Guards against NaN.


class _NanTest(NamedTuple):
    """`any_nan` is the `ReduceMax` that asks whether one of the numbers in `rows` is NaN."""

    any_nan: onnx.NodeProto
    rows: str


def _nan_test(node: onnx.NodeProto, producers: _Producers) -> _NanTest | None:
    """What a guard asks; None where the node is no guard."""
    any_nan = producers.find(node.input[0], "ReduceMax") if node.op_type == "Where" else None
    is_nan = None if any_nan is None else producers.find(any_nan.input[0], "IsNaN")
    return None if any_nan is None or is_nan is None else _NanTest(any_nan, is_nan.input[0])


def _unguard(guard: onnx.NodeProto) -> None:
    """Leave the extremum that a guard hands on."""
    extremum = guard.input[2]
    guard.op_type = "Identity"
    del guard.input[:]
    guard.input.append(extremum)


def _is_over_rows(softmax: onnx.NodeProto) -> bool:
    """Whether it is taken over the last dimension of two; without an axis it is, in every operator set."""
    return all(attribute.i in {-1, 1} for attribute in softmax.attribute if attribute.name == "axis")


def _unguard_beside_sums(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> None:
    """Take the guard from what is compared and then only counts together with `sum == sum` of the same rows, in place."""
    producers = _Producers(nodes)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in _reads(node):
            readers.setdefault(name, []).append(node)
    for node in nodes:
        test = _nan_test(node, producers)
        if test is None:
            continue
        beside = (name for both in _conjunctions(node, readers, outputs) for name in both.input)
        if any(_asks_the_sum(name, test, producers) for name in beside):
            _unguard(node)


def _conjunctions(
    node: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]], outputs: set[str]
) -> Iterator[onnx.NodeProto]:
    """Each `And` through which alone the comparison of what a node makes is seen, the nearest first."""
    wanted: tuple[str, ...] = _COMPARISONS
    name = node.output[0]
    while name not in outputs and len(readers.get(name, ())) == 1:
        (reader,) = readers[name]
        if reader.op_type in wanted:
            if reader.op_type == "And":
                yield reader
            wanted = ("And",)
        elif reader.op_type != "Identity":
            return
        name = reader.output[0]


def _asks_the_sum(name: str, test: _NanTest, producers: _Producers) -> bool:
    """Whether a tensor says that the sum of the tested rows, over the same dimensions, equals itself."""
    equal = producers.find(name, "Equal")
    if equal is None or equal.input[0] != equal.input[1]:
        return False
    total = producers.find(equal.input[0], "ReduceSum")
    if total is None or total.input[0] != test.rows or len(total.input) < 2 or len(test.any_nan.input) < 2:
        return False
    summed, tested = (producers.constant(node.input[1]) for node in (total, test.any_nan))
    return summed is not None and tested is not None and np.array_equal(summed, tested)


# What is left over.


def _keep_used(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Make the graph those of the nodes that contribute to its outputs, in order; the same are returned."""
    wanted = {output.name for output in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= _reads(node)
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)
    return kept


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, its subgraphs' too."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.HasField("g") else ():
            names |= _reads(inner)
    return names
