"""Takes out of a traced graph what the tracer guards against and cannot be.

Tensors without elements: every reduction and matrix product is guarded by a branch (`If(Size(x) == 0)`). Here a batch has at least one row and a row at least one
number, and each such branch costs as much time as the reduction itself.

NaN within a softmax: every maximum is guarded, because the runtime's does not hand NaN on. A row of a softmax is NaN as a whole or not at all,
and the maximum of nothing but NaN is above no threshold, whatever the runtime makes of it.
"""

from __future__ import annotations

import numpy as np

from garrison.errors import MissingExtraError

try:
    import onnx
    from onnx import numpy_helper
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error


def unbranch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for tensors that are not empty. Inputs that nothing reads are dropped."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    makers = {name: node for node in changed.graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in changed.graph.node:
        if node.op_type == "Einsum" and _is_product(node):
            nodes.append(onnx.helper.make_node("MatMul", node.input, node.output))
        elif node.op_type == "If" and _asks_for_emptiness(node, makers):
            nodes += _inlined(node)
        else:
            nodes.append(node)
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
    makers = {name: node for node in graph.node for name in node.output}

    def source(name: str, *operators: str) -> str | None:
        """What those operators, the last first, were given; through identities."""
        for operator in operators:
            node = makers.get(name)
            while node is not None and node.op_type == "Identity":
                node = makers.get(node.input[0])
            if node is None or node.op_type != operator:
                return None
            name = node.input[0]
        return name

    if source(tensor, "Softmax") is None or not _is_within_rows(makers[tensor]):
        return
    for node in graph.node:
        if node.op_type == "Where" and source(node.input[0], "ReduceMax", "IsNaN") == tensor:
            maximum = node.input[2]
            node.op_type = "Identity"
            del node.input[:]
            node.input.append(maximum)
    kept = _used(list(graph.node), {output.name for output in graph.output})
    del graph.node[:]
    graph.node.extend(kept)


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
