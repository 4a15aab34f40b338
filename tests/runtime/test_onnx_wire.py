"""What is read is what the `onnx` package reads, and what is written it accepts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.runtime.networks import NETWORKS, export

from garrison.errors import ManifestError
from garrison.runtime.onnx_wire import _field, read_model, value_info, write_model


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    make, shape = NETWORKS["transformer encoder"]
    return export(make(), shape)


def test_it_reads_what_the_package_reads(model: onnx.ModelProto) -> None:
    found = read_model(memoryview(model.SerializeToString()))
    assert [bytes(node.raw) for node in found.nodes] == [node.SerializeToString() for node in model.graph.node]
    assert [node.makes for node in found.nodes] == [tuple(node.output) for node in model.graph.node]
    assert [node.uses for node in found.nodes] == [frozenset(node.input) - {""} for node in model.graph.node]
    assert set(found.inputs) == {"x"}
    assert set(found.outputs) == {"probabilities"}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        ours = found.constants[tensor.name]
        assert (ours.shape, ours.dtype) == (array.shape, array.dtype)
        assert ours.data is None or bytes(ours.data) == array.tobytes()


def test_what_it_writes_is_a_model(model: onnx.ModelProto) -> None:
    found = read_model(memoryview(model.SerializeToString()))
    inputs = [bytes(found.inputs["x"]), value_info("w", 1, (3, 200))]
    outputs = [bytes(found.outputs["probabilities"])]
    written = onnx.load_from_string(
        write_model(found.head, found.nodes, inputs, outputs, list(found.constants.values()))
    )
    assert written.opset_import == model.opset_import
    assert list(written.graph.node) == list(model.graph.node)
    assert list(written.graph.initializer) == list(model.graph.initializer)
    assert [d.dim_value for d in written.graph.input[1].type.tensor_type.shape.dim] == [3, 200]
    onnx.checker.check_model(written)


def test_names_that_a_subgraph_takes_from_outside_count() -> None:
    def branch(name: str) -> onnx.GraphProto:
        node = onnx.helper.make_node("Add", ["outer", "own"], [name])
        own = numpy_helper.from_array(np.zeros(1, np.float32), "own")
        value = onnx.helper.make_tensor_value_info(name, 1, [1])
        return onnx.helper.make_graph([node], name, [], [value], [own])

    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    value = onnx.helper.make_tensor_value_info("y", 1, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [value]))
    assert read_model(memoryview(model.SerializeToString())).nodes[0].uses == {"c", "outer"}


def nested(depth: int) -> bytes:
    """A node with an attribute with a graph with a node, and so on."""
    graph = b""
    for _ in range(depth):
        graph = _field(1, _field(5, _field(6, graph)))
    return _field(7, graph)


def test_graphs_in_graphs_end() -> None:
    assert len(read_model(memoryview(nested(20))).nodes) == 1
    with pytest.raises(ManifestError, match="cannot be taken apart"):
        read_model(memoryview(nested(3000)))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x3a\xff\x01", b"\x3a\x7f", b"\x3b", b"nonsense", b"\x3a\x03\x0a\x05a", b"\x80" * 2_000_000 + b"\x01"],
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError, match="cannot be taken apart"):
        read_model(memoryview(data))
