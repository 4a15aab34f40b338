"""Parameters leave the graph, and nothing else changes."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from garrison.sealing import parameters
from garrison.sealing.parameters import ALIGNMENT_BYTES, CHUNK_BYTES, Chunk, split
from garrison.types import Array

ROWS = (1, 2, 37)


def lenet(hidden: int = 120) -> onnx.ModelProto:
    """Convolution, pooling, a dense layer whose bias is a Constant node, a reshape with its shape constant."""
    rng = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.2, shape).astype(np.float32), name)

    bias = tensor("bias_value", hidden)
    nodes = [
        helper.make_node("Conv", ["x", "k", "kb"], ["c"], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p", "shape"], ["f"]),
        helper.make_node("Constant", [], ["b1"], value=bias),
        helper.make_node("Gemm", ["f", "w1", "b1"], ["h"], doc_string="/home/owner/secret/train.py"),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["z"]),
        helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "lenet",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1, 28, 28])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10])],
        [
            tensor("k", 6, 1, 5, 5),
            tensor("kb", 6),
            tensor("w1", 6 * 14 * 14, hidden),
            tensor("w2", hidden, 10),
            tensor("b2", 10),
            numpy_helper.from_array(np.array([-1, 6 * 14 * 14]), "shape"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(graph: bytes, chunks: tuple[Chunk, ...], x: Array, optimisation: object = None) -> Array:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if optimisation is not None:
        options.graph_optimization_level = optimisation
    if chunks:
        names, buffers = [c.file for c in chunks], [c.data for c in chunks]
        options.add_external_initializers_from_files_in_memory(names, buffers, [len(b) for b in buffers])
    found: Array = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return found


def images(rows: int) -> Array:
    return np.random.default_rng(rows).random((rows, 1, 28, 28), dtype=np.float32)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("level", ["ORT_ENABLE_ALL", "ORT_DISABLE_ALL"])
def test_the_split_graph_answers_like_the_whole_one(rows: int, level: str) -> None:
    model = lenet()
    graph, chunks = split(model)
    assert any(t.offset for c in chunks for t in c.tensors), "the test must cover offsets within a chunk"
    expected = run(model.SerializeToString(), (), images(rows))
    found = run(graph, chunks, images(rows), getattr(ort.GraphOptimizationLevel, level))
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_other_parameters_give_other_answers() -> None:
    """The control arm: the runtime does read the chunks that it is given."""
    graph, chunks = split(lenet())
    zeroed = tuple(Chunk(c.file, bytes(len(c.data)), c.tensors) for c in chunks)
    assert not np.allclose(run(graph, zeroed, images(2)), run(graph, chunks, images(2)), atol=1e-3)


def test_the_graph_holds_no_parameters_and_no_paths() -> None:
    model = lenet()
    model.graph.node[0].metadata_props.add(key="stack", value="/home/owner/secret/model.py")
    model.doc_string = "made on a machine"
    assert b"/home/owner" in model.SerializeToString()
    graph, chunks = split(model)
    assert b"/home/owner" not in graph
    assert b"made on" not in graph
    assert len(graph) < 2_000 < sum(len(c.data) for c in chunks)
    assert {t.name for c in chunks for t in c.tensors} == {"k", "w1", "w2", "b1"}


def test_small_tensors_and_shapes_stay() -> None:
    left = onnx.load_model_from_string(split(lenet())[0]).graph.initializer
    inside = {t.name for t in left if t.data_location != TensorProto.EXTERNAL}
    assert inside == {"kb", "b2", "shape"}


def test_tensors_lie_aligned_apart_and_whole() -> None:
    model = lenet()
    by_name = {t.name: numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}
    for chunk in split(model)[1]:
        end = 0
        for tensor in chunk.tensors:
            assert tensor.offset % ALIGNMENT_BYTES == 0
            assert tensor.offset >= end
            end = tensor.offset + tensor.length
            if tensor.name in by_name:
                assert chunk.data[tensor.offset : end] == by_name[tensor.name]
        assert end == len(chunk.data)


def test_chunks_are_about_a_mebibyte_and_a_large_tensor_is_whole() -> None:
    chunks = split(lenet(hidden=400))[1]
    assert [c.file for c in chunks] == [f"parameters/{i:04d}.bin" for i in range(len(chunks))]
    large = [c for c in chunks if len(c.data) > CHUNK_BYTES]
    assert [[t.name for t in c.tensors] for c in large] == [["w1"]]


def test_chunks_are_filled_up_to_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "CHUNK_BYTES", 6000)
    sizes = [len(c.data) for c in split(lenet())[1]]
    assert max(s for s in sizes if s <= 6000) > 4000
    graph, chunks = split(lenet(), first=7)
    assert chunks[0].file == "parameters/0007.bin"
    assert np.allclose(run(graph, chunks, images(2)), run(lenet().SerializeToString(), (), images(2)), atol=1e-6)


def test_equal_models_give_equal_bytes_and_the_model_is_not_changed() -> None:
    model = lenet()
    before = model.SerializeToString(deterministic=True)
    first, second = split(model), split(lenet())
    assert first == second
    assert model.SerializeToString(deterministic=True) == before


def test_a_float_stored_as_numbers_is_laid_out_as_bytes() -> None:
    """ONNX may hold a tensor's values in `float_data` in place of raw bytes."""
    values = np.arange(32, dtype=np.float32)
    model = lenet()
    plain = helper.make_tensor("extra", TensorProto.FLOAT, [32], values.tolist(), raw=False)
    model.graph.initializer.append(plain)
    chunks = split(model)[1]
    chunk, entry = next(
        (c, t)
        for c, t in itertools.chain.from_iterable([(c, t) for t in c.tensors] for c in chunks)
        if t.name == "extra"
    )
    assert chunk.data[entry.offset : entry.offset + entry.length] == values.tobytes()


def test_tensors_of_a_subgraph_stay_in_the_graph() -> None:
    weight = numpy_helper.from_array(np.full((1, 64), 2.0, np.float32), "inner")
    branch = helper.make_graph(
        [helper.make_node("Mul", ["x", "inner"], ["y_then"])],
        "then",
        [],
        [helper.make_tensor_value_info("y_then", TensorProto.FLOAT, None)],
        [weight],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y_else"])],
        "else",
        [],
        [helper.make_tensor_value_info("y_else", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
            helper.make_node("If", ["yes"], ["probabilities"], then_branch=branch, else_branch=other),
        ],
        "if",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 64])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data, chunks = split(model)
    assert chunks == ()
    x = np.ones((3, 64), np.float32)
    assert np.array_equal(run(data, (), x), 2 * x)
