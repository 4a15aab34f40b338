"""Takes out of a traced graph what the tracer guards against and cannot be.

Tensors without elements: every reduction and matrix product is guarded by a branch (`If(Size(x) == 0)`). Here a batch has at least one row and a row at least one
number, and each such branch costs as much time as the reduction itself.

Detours: an extremum is taken of a tensor with a dimension appended, which the runtime is slow at.

NaN within a softmax: every maximum is guarded, because the runtime's does not hand NaN on. A row of a softmax is NaN as a whole or not at all,
and the maximum of nothing but NaN is above no threshold, whatever the runtime makes of it.

NaN in a row whose sum is asked for NaN anyway: what is true only if the sum of the same row equals itself needs no guard on that row's minimum
and maximum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from garrison.errors import MissingExtraError
from garrison.types import Array

try:
    import onnx
    from onnx import numpy_helper
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

Makers = dict[str, onnx.NodeProto]
_COMPARISONS = ("GreaterOrEqual", "LessOrEqual", "Greater", "Less")


def unbranch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for tensors that are not empty. Inputs that nothing reads are dropped."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    makers = makers_of(changed.graph.node)
    nodes: list[onnx.NodeProto] = []
    for node in changed.graph.node:
        if node.op_type == "Einsum" and _is_product(node):
            nodes.append(onnx.helper.make_node("MatMul", node.input, node.output))
        elif node.op_type == "If" and _asks_for_emptiness(node, makers):
            nodes += _inlined(node)
        else:
            nodes.append(node)
    _straighten(nodes)
    without_guard_beside_sum(nodes, {output.name for output in changed.graph.output})
    kept = _used(nodes, {output.name for output in changed.graph.output})
    del changed.graph.node[:]
    changed.graph.node.extend(kept)
    read = {name for node in kept for name in _reads(node)}
    inputs = [value for value in changed.graph.input if value.name in read]
    del changed.graph.input[:]
    changed.graph.input.extend(inputs)
    return changed


def without_nan_guard(graph: onnx.GraphProto, tensor: str) -> None:
    """Where a softmax makes the tensor, take the guard against NaN from its maxima, in place."""
    makers = makers_of(graph.node)
    if _source(makers, tensor, "Softmax") is None or not _is_within_rows(makers[tensor]):
        return
    for node in graph.node:
        if node.op_type == "Where" and _source(makers, node.input[0], "ReduceMax", "IsNaN") == tensor:
            _take_off(node)
    kept = _used(list(graph.node), {output.name for output in graph.output})
    del graph.node[:]
    graph.node.extend(kept)


def without_guard_beside_sum(nodes: list[onnx.NodeProto], outputs: set[str]) -> None:
    """Take the guard against NaN from what is compared and then only counts together with `sum == sum` of the same rows, in place.

    Where a row holds NaN its sum is NaN, in every runtime, and that comparison is false; where it holds none, the guard changes nothing.
    """
    makers = makers_of(nodes)
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in _reads(node):
            users.setdefault(name, []).append(node)
    for node in nodes:
        any_nan = _maker(makers, node.input[0], "ReduceMax") if node.op_type == "Where" else None
        if any_nan is None:
            continue
        rows = _source(makers, any_nan.input[0], "IsNaN")
        needed = _needed_by(node, users, outputs)
        if rows is not None and any(
            _asks_the_sum(name, rows, any_nan, makers) for both in needed for name in both.input
        ):
            _take_off(node)


def _needed_by(
    node: onnx.NodeProto, users: Mapping[str, Sequence[onnx.NodeProto]], outputs: set[str]
) -> Iterator[onnx.NodeProto]:
    """The conjunctions through which alone the comparison of what a node makes is seen."""
    wanted: tuple[str, ...] = _COMPARISONS
    name = node.output[0]
    while name not in outputs and len(users.get(name, ())) == 1:
        (user,) = users[name]
        if user.op_type in wanted:
            if user.op_type == "And":
                yield user
            wanted = ("And",)
        elif user.op_type != "Identity":
            return
        name = user.output[0]


def _asks_the_sum(name: str, rows: str, any_nan: onnx.NodeProto, makers: Makers) -> bool:
    """Whether a tensor says that the sum of these rows equals itself; over the same dimensions as another reduction."""
    test = _maker(makers, name, "Equal")
    if test is None or test.input[0] != test.input[1]:
        return False
    total = _maker(makers, test.input[0], "ReduceSum")
    if total is None or total.input[0] != rows or len(total.input) < 2 or len(any_nan.input) < 2:
        return False
    ours, theirs = (_constant(makers, node.input[1]) for node in (total, any_nan))
    return ours is not None and theirs is not None and np.array_equal(ours, theirs)


def _straighten(nodes: list[onnx.NodeProto]) -> None:
    """Reduce rows as they are, in place: the tracer appends a dimension of one and takes it off again, and the runtime is a fifth as fast that way."""
    makers = makers_of(nodes)
    for node in nodes:
        if node.op_type != "Squeeze" or not _is(makers, node, [-1]):
            continue
        reduced = _maker(makers, node.input[0], "ReduceMax") or _maker(makers, node.input[0], "ReduceMin")
        longer = None if reduced is None else _maker(makers, reduced.input[0], "Unsqueeze")
        if (
            reduced is None
            or longer is None
            or len(reduced.input) < 2
            or any(a.i for a in reduced.attribute if a.name == "keepdims")
        ):
            continue
        last, axes = (_constant(makers, part.input[1]) for part in (longer, reduced))
        if last is None or axes is None or last.size != 1 or not ((axes >= 0) & (axes < last)).all():
            continue
        sources = (longer.input[0], reduced.input[1])
        node.op_type = reduced.op_type
        del node.input[:]
        node.input.extend(sources)
        node.attribute.extend(reduced.attribute)


def _is(makers: Makers, node: onnx.NodeProto, axes: list[int]) -> bool:
    found = _constant(makers, node.input[1]) if len(node.input) > 1 else None
    return found is not None and np.array_equal(found, axes)


def makers_of(nodes: Iterable[onnx.NodeProto]) -> Makers:
    """The node that makes each tensor."""
    return {name: node for node in nodes for name in node.output}


def _maker(makers: Makers, name: str, operator: str) -> onnx.NodeProto | None:
    """The node that makes a tensor, through identities, if it is one of that operator."""
    node = makers.get(name)
    while node is not None and node.op_type == "Identity":
        node = makers.get(node.input[0])
    return node if node is not None and node.op_type == operator else None


def _source(makers: Makers, name: str, *operators: str) -> str | None:
    """What those operators, the last first, were given; through identities."""
    for operator in operators:
        node = _maker(makers, name, operator)
        if node is None:
            return None
        name = node.input[0]
    return name


def _constant(makers: Makers, name: str) -> Array | None:
    node = makers.get(name)
    if node is None or node.op_type != "Constant" or not node.attribute[0].HasField("t"):
        return None
    found: Array = numpy_helper.to_array(node.attribute[0].t)
    return found


def _take_off(guard: onnx.NodeProto) -> None:
    """Leave the extremum that a guard against NaN hands on."""
    extremum = guard.input[2]
    guard.op_type = "Identity"
    del guard.input[:]
    guard.input.append(extremum)


def _is_within_rows(softmax: onnx.NodeProto) -> bool:
    """Whether it is taken over the last dimension of two; without an axis it is, in every operator set."""
    return all(attribute.i in {-1, 1} for attribute in softmax.attribute if attribute.name == "axis")


def _asks_for_emptiness(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> bool:
    test = makers.get(node.input[0])
    if test is None or test.op_type != "Equal":
        return False
    sides = [makers.get(name) for name in test.input]
    sizes = [side for side in sides if side is not None and _is_size(side, makers)]
    return len(sizes) == 1 and any(side is not None and _is_zero(side) for side in sides)


def _is_product(node: onnx.NodeProto) -> bool:
    """Whether an Einstein sum is the product of two matrices, for which the runtime has a faster operator."""
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    left, comma, rest = equation.partition(",")
    right, arrow, result = rest.partition("->")
    if not comma or not arrow or len(left) != 2 or len(right) != 2 or len({*left, *right}) != 3:
        return False
    return bool(left[1] == right[0] and result == left[0] + right[1])


def _is_size(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> bool:
    """Of a tensor, or of two as one product, as a matrix product asks."""
    if node.op_type == "Size":
        return True
    factors = [makers.get(name) for name in node.input] if node.op_type == "Mul" else []
    return bool(factors) and all(factor is not None and factor.op_type == "Size" for factor in factors)


def _is_zero(node: onnx.NodeProto) -> bool:
    if node.op_type != "Constant":
        return False
    attribute = node.attribute[0]
    value = numpy_helper.to_array(attribute.t) if attribute.HasField("t") else np.asarray(attribute.i)
    return value.size == 1 and not value.any()


def _inlined(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    branch = next(a.g for a in node.attribute if a.name == "else_branch")
    links = [
        onnx.helper.make_node("Identity", [inner.name], [outer])
        for inner, outer in zip(branch.output, node.output, strict=True)
    ]
    return [*branch.node, *links]


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, its subgraphs' too."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.HasField("g") else ():
            names |= _reads(inner)
    return names


def _used(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that contribute to what is wanted, in order."""
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= _reads(node)
    return kept[::-1]
