"""What is taken out of a traced graph, and what must stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ndonnx as ndx
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from garrison.sealing.unbranch import unbranch, without_nan_guard

LAST = numpy_helper.from_array(np.array([1], np.int64), "last")
UNKNOWN = numpy_helper.from_array(np.array(np.nan, np.float32), "unknown")


def guarded_maximum(makes_p: onnx.NodeProto) -> onnx.ModelProto:
    """z -> p, by one node; the maximum of p, guarded against NaN as the tracer does it."""
    nodes = [
        makes_p,
        helper.make_node("IsNaN", ["p"], ["is_nan"]),
        helper.make_node("Cast", ["is_nan"], ["as_number"], to=TensorProto.INT32),
        helper.make_node("ReduceMax", ["is_nan", "last"], ["any_nan"], keepdims=0),
        helper.make_node("ReduceMax", ["p", "last"], ["max"], keepdims=0),
        helper.make_node("Identity", ["any_nan"], ["condition"]),
        helper.make_node("Where", ["condition", "unknown", "max"], ["confidence"]),
    ]
    inputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3])]
    outputs = [helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["n"])]
    graph = helper.make_graph(nodes, "maximum", inputs, outputs, [LAST, UNKNOWN])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_softmax_needs_no_guard_against_nan() -> None:
    model = guarded_maximum(helper.make_node("Softmax", ["z"], ["p"], axis=-1))
    without_nan_guard(model.graph, "p")
    assert operators(model) == ["Softmax", "ReduceMax", "Identity"]
    z = np.array([[1.0, 2.0, 3.0], [np.nan, 2.0, 3.0], [1.0, np.inf, 0.0], [-np.inf] * 3], np.float32)
    (found,) = ort.InferenceSession(model.SerializeToString()).run(["confidence"], {"z": z})
    assert found[0] == pytest.approx(0.66524, abs=1e-4)
    assert not (found[1:] > 0.0).any()  # above no threshold: such a row is never taken for sure of itself


@pytest.mark.parametrize(
    "makes_p",
    [helper.make_node("Sigmoid", ["z"], ["p"]), helper.make_node("Softmax", ["z"], ["p"], axis=0)],
    ids=["sigmoid", "softmax over the rows"],
)
def test_the_control_whatever_else_keeps_its_guard(makes_p: onnx.NodeProto) -> None:
    model = guarded_maximum(makes_p)
    before = operators(model)
    without_nan_guard(model.graph, "p")
    assert operators(model) == before
    z = np.array([[1.0, np.nan, 3.0]], np.float32)
    (found,) = ort.InferenceSession(model.SerializeToString()).run(["confidence"], {"z": z})
    assert np.isnan(found).all()


@pytest.mark.parametrize("product", [ndx.matmul, lambda a, b: ndx.tensordot(a, b, axes=1)], ids=["matmul", "tensordot"])
def test_a_traced_product_is_one_node(product: Callable[[Any, Any], Any]) -> None:
    x = ndx.argument(shape=("rows", 4), dtype=ndx.float32)
    weights = np.arange(8, dtype=np.float32).reshape(4, 2)
    traced = ndx.build({"x": x}, {"y": product(x, ndx.asarray(weights))})
    assert {"If", "Einsum"} & set(operators(traced)), "else there is nothing to take out"
    model = unbranch(traced)
    assert set(operators(model)) <= {"Constant", "Identity", "MatMul"}
    rows = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(
        ort.InferenceSession(model.SerializeToString()).run(["y"], {"x": rows})[0], rows @ weights
    )


def test_another_einstein_sum_stays() -> None:
    x = ndx.argument(shape=("rows", 4, 3), dtype=ndx.float32)
    traced = ndx.build({"x": x}, {"y": ndx.tensordot(x, ndx.asarray(np.ones((3, 2), np.float32)), axes=1)})
    assert "Einsum" in operators(unbranch(traced))
