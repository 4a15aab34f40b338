"""Walks over all of an ONNX model: subgraphs of If and Loop, local functions, tensors inside attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from garrison.errors import MissingExtraError

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def all_nodes(nodes: Any) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in all_graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    for node in (node for body in bodies for node in all_nodes(body)):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def names_used(node: onnx.NodeProto) -> set[str]:
    used = set(node.input)
    for graph in subgraphs(node):
        used |= {o.name for o in graph.output} | {name for inner in graph.node for name in names_used(inner)}
    return used


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give one tensor another name, wherever it stands; names are unique over a graph and its subgraphs."""
    for part in all_graphs(graph):
        for value in (*part.input, *part.output, *part.value_info, *part.initializer):
            value.name = new if value.name == old else value.name
        for node in part.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]


def prune(graph: onnx.GraphProto) -> None:
    """Drop nodes and initializers that no output needs."""
    needed, kept = {o.name for o in graph.output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= names_used(node)
    nodes = list(reversed(kept))
    del graph.node[:]
    graph.node.extend(nodes)
    for field in (graph.initializer, graph.value_info):
        rest = [value for value in field if value.name in needed or value.name in {o for n in nodes for o in n.output}]
        del field[:]
        field.extend(rest)
