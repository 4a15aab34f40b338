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


def judged(*, summed: str = "x", axis: int = 1, shown: bool = False) -> onnx.ModelProto:
    """Rows of x at least 0, by a minimum that the tracer guards against NaN, and by a sum of x or y."""
    x, y = (ndx.argument(shape=("rows", 5), dtype=ndx.float32) for _ in range(2))
    total = ndx.sum({"x": x, "y": y}[summed], axis=axis)
    positive = ndx.min(x, axis=1) >= ndx.asarray(np.float32(0))
    good = {"good": positive & (total == total)}
    return unbranch(ndx.build({"x": x, "y": y}, good | ({"positive": positive} if shown else {})))


def test_a_minimum_needs_no_guard_where_the_sum_of_its_rows_is_asked_for_nan() -> None:
    model = judged()
    assert "IsNaN" not in operators(model)
    x = np.ones((6, 5), np.float32)
    x[np.arange(5), np.arange(5)] = np.nan
    (good,) = ort.InferenceSession(model.SerializeToString()).run(["good"], {"x": x})
    assert good.tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("other", [{"summed": "y"}, {"axis": 0}, {"shown": True}], ids=["rows", "axis", "shown"])
def test_the_control_a_minimum_keeps_its_guard(other: dict[str, Any]) -> None:
    """The sum is of other rows, or over another dimension, or what was compared is seen without it."""
    assert "IsNaN" in operators(judged(**other))


@pytest.mark.parametrize("axis", [1, -1, 0, 2, (1, 2), None])
@pytest.mark.parametrize("extremum", [ndx.max, ndx.min])
def test_an_extremum_is_taken_without_a_detour(
    extremum: Callable[..., Any], axis: int | tuple[int, ...] | None
) -> None:
    x = ndx.argument(shape=("rows", 4, 3), dtype=ndx.float32)
    traced = ndx.build({"x": x}, {"y": extremum(x, axis=axis)})
    model = unbranch(traced)
    assert not {"Squeeze", "Unsqueeze"} & set(operators(model))
    rows = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    wanted = {"max": rows.max, "min": rows.min}[extremum.__name__](axis=axis)
    np.testing.assert_array_equal(ort.InferenceSession(model.SerializeToString()).run(["y"], {"x": rows})[0], wanted)
