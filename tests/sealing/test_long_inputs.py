"""Long rows: what the traced guard does with them in fewer passes refuses what the reference refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from garrison.guard import marks
from garrison.guard.defenses.bounds import LONG, within
from garrison.sealing.tracing import trace
from garrison.types import Array, BoolArray, DefenseSpec, InputFacts, ModelFacts, Task

CHAIN = (DefenseSpec(name="bounds"), DefenseSpec(name="release"))
AT_ONCE = 256


def facts_of(low: Array, high: Array) -> ModelFacts:
    spec = InputFacts("x", np.dtype(np.float32), (2, LONG // 2), low, high, np.zeros(LONG, np.bool_))
    return ModelFacts(Task.CLASSIFICATION, (spec,), ("a", "b"), 2, np.dtype(np.float32), False, False)


def session_of(facts: ModelFacts) -> Any:
    return ort.InferenceSession(trace(CHAIN, facts).before.SerializeToString())


def judge(session: Any, x: Array) -> tuple[BoolArray, Array]:
    """Rows that are refused, and what the model gets."""
    found, safe = session.run([marks.ADMIT, "x"], {session.get_inputs()[0].name: x})
    return marks.refuser(found) >= 0, safe


@pytest.fixture(scope="module")
def one_range() -> tuple[ModelFacts, Any]:
    facts = facts_of(np.full(LONG, 0.25, np.float32), np.ones(LONG, np.float32))
    return facts, session_of(facts)


def test_its_graph_compares_rows_and_not_values(one_range: tuple[ModelFacts, Any]) -> None:
    operators = [node.op_type for node in trace(CHAIN, one_range[0]).before.graph.node]
    assert "IsNaN" not in operators
    assert {"ReduceMin", "ReduceMax", "ReduceSum", "ScatterND"} <= set(operators)
    several = facts_of(np.linspace(0, 0.5, LONG, dtype=np.float32), np.ones(LONG, np.float32))
    assert "ReduceSum" not in [node.op_type for node in trace(CHAIN, several).before.graph.node], "control"


def test_refuses_nan_at_every_position(one_range: tuple[ModelFacts, Any]) -> None:
    x = np.full((AT_ONCE, LONG), 0.5, np.float32)
    rows = np.arange(AT_ONCE)
    assert not judge(one_range[1], x.reshape(-1, 2, LONG // 2))[0].any(), "control"
    for start in range(0, LONG, AT_ONCE):
        x[rows, start + rows] = np.nan
        refused, safe = judge(one_range[1], x.reshape(-1, 2, LONG // 2))
        assert refused.all()
        assert safe.max() == safe.min() == np.float32(0.25)
        x[rows, start + rows] = 0.5


@pytest.mark.parametrize("rows", [1, 2, 37])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5, 0.2499, 3e38, -3e38])
def test_a_refused_row_reaches_the_model_as_the_lower_bounds_and_no_other(
    one_range: tuple[ModelFacts, Any], value: float, rows: int
) -> None:
    facts, session = one_range
    spec = facts.inputs[0]
    x = np.random.default_rng(rows).uniform(0.25, 1, (rows, LONG)).astype(np.float32)
    x[::2, [0, LONG // 3, -1]] = value
    wanted = ~within(np, x, spec.low, spec.high, None)
    assert wanted[::2].all()
    assert not wanted[1::2].any()
    refused, safe = judge(session, x.reshape(-1, *spec.shape))
    np.testing.assert_array_equal(refused, wanted)
    np.testing.assert_array_equal(safe.reshape(rows, -1)[1::2], x[1::2])
    assert (safe[::2] == np.float32(0.25)).all()


def test_lower_bounds_that_differ_from_feature_to_feature() -> None:
    low = np.linspace(0, 0.5, LONG, dtype=np.float32)
    session = session_of(facts_of(low, np.ones(LONG, np.float32)))
    x = np.full((3, LONG), 0.75, np.float32)
    x[1, 5] = np.nan
    refused, safe = judge(session, x.reshape(-1, 2, LONG // 2))
    assert refused.tolist() == [False, True, False]
    np.testing.assert_array_equal(safe.reshape(3, -1), np.stack([x[0], low, x[2]]))
