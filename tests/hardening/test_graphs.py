from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from garrison.errors import ModelFileError, SealingError, UnsupportedModelError
from garrison.hardening import graphs
from garrison.hardening.scoring import open_session, score
from garrison.types import Array, Task

SAMPLE = {"x": np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)}


def linear(
    *last: onnx.NodeProto, outputs: tuple[str, ...] = ("z",), batch: Any = "n", columns: int = 3
) -> onnx.ModelProto:
    """x (n, 4) -> z (n, columns) -> whatever `last` makes of it."""
    weight = np.random.default_rng(1).normal(size=(4, columns)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), *last],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, None]) for name in outputs],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(weight, "unused")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(path: Path, model: onnx.ModelProto) -> Path:
    (path / "m.onnx").write_bytes(model.SerializeToString())
    return path / "m.onnx"


def run(model: onnx.ModelProto, sample: dict[str, Array] = SAMPLE) -> dict[str, Array]:
    return score(open_session(model.SerializeToString()), sample)


SOFTMAX = helper.make_node("Softmax", ["z"], ["p"], axis=1)


# Reading


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"hello, world", b"\x08\x08", b"PK\x03\x04"])
def test_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelFileError):
        graphs.load_model(tmp_path / "m.onnx")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="No such file"):
        graphs.load_model(tmp_path / "none.onnx")
    with pytest.raises(ModelFileError):
        graphs.load_model(tmp_path)


def test_every_truncation_is_refused_or_still_a_whole_model(tmp_path: Path) -> None:
    whole = linear(SOFTMAX, outputs=("p",)).SerializeToString()
    refused = 0
    for length in range(0, len(whole), 7):
        (tmp_path / "m.onnx").write_bytes(whole[:length])
        try:
            graphs.load_model(tmp_path / "m.onnx")
        except SealingError:
            refused += 1
    assert refused > 0.9 * len(whole) / 7


def test_custom_operators_are_refused_also_inside_a_branch(tmp_path: Path) -> None:
    custom = helper.make_node("Evil", ["z"], ["p"], domain="com.example")
    with pytest.raises(UnsupportedModelError, match=r"com\.example::Evil"):
        graphs.load_model(saved(tmp_path, linear(custom, outputs=("p",))))
    branch = helper.make_graph([custom], "b", [], [helper.make_tensor_value_info("p", TensorProto.FLOAT, None)])
    inside = helper.make_node("If", ["c"], ["q"], then_branch=branch, else_branch=branch)
    with pytest.raises(UnsupportedModelError, match="Evil"):
        graphs.load_model(saved(tmp_path, linear(inside, outputs=("q",))))


def test_local_functions_of_standard_operators_are_inlined(tmp_path: Path) -> None:
    model = linear(helper.make_node("Twice", ["z"], ["y"], domain="mine"), outputs=("y",))
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    function = helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    loaded = graphs.load_model(saved(tmp_path, model))
    assert [node.op_type for node in loaded.graph.node] == ["MatMul", "Add"]
    function.node[0].domain = "com.example"
    del model.functions[:]
    model.functions.append(function)
    with pytest.raises(UnsupportedModelError):
        graphs.load_model(saved(tmp_path, model))


def external(location: str, **fields: str) -> onnx.ModelProto:
    model = linear(SOFTMAX, outputs=("p",))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=value)
    return model


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    model = linear(SOFTMAX, outputs=("p",))
    (tmp_path / "weights.bin").write_bytes(b"\0" * 8 + model.graph.initializer[0].raw_data)
    loaded = graphs.load_model(saved(tmp_path, external("weights.bin", offset="8", length="48")))
    assert loaded.graph.initializer[0].data_location == TensorProto.DEFAULT
    np.testing.assert_array_equal(run(loaded)["p"], run(model)["p"])


@pytest.mark.parametrize(
    ("location", "fields", "message"),
    [
        ("../weights.bin", {}, "outside"),
        ("/etc/hostname", {}, "outside"),
        ("a/../../weights.bin", {}, "outside"),
        ("link.bin", {}, "outside"),
        ("", {}, "outside"),
        ("none.bin", {}, "no file"),
        ("inside.bin", {"offset": "8", "length": "48"}, "beyond the end"),
        ("inside.bin", {"offset": "-8", "length": "48"}, "beyond the end"),
        ("inside.bin", {"length": "-1"}, "beyond the end"),
        ("inside.bin", {"offset": "x"}, "must be numbers"),
    ],
)
def test_bad_external_data(tmp_path: Path, location: str, fields: dict[str, str], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (tmp_path / "weights.bin", folder / "inside.bin"):
        file.write_bytes(b"\0" * 48)
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(ModelFileError, match=message):
        graphs.load_model(saved(folder, external(location, **fields)))


def test_old_models_list_initializers_as_inputs(tmp_path: Path) -> None:
    model = linear(SOFTMAX, outputs=("p",))
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    model.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [4, 3]))
    loaded = graphs.load_model(saved(tmp_path, model))
    assert graphs.graph_inputs(loaded) == {"x": ("FP32", (4,))}


# Inputs


def test_a_fixed_batch_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="fixed to 1 rows"):
        graphs.graph_inputs(linear(batch=1))


@pytest.mark.parametrize(("kind", "message"), [(TensorProto.STRING, "STRING"), (TensorProto.COMPLEX64, "COMPLEX64")])
def test_inputs_that_cannot_be_served(kind: int, message: str) -> None:
    model = linear()
    model.graph.input[0].type.tensor_type.elem_type = kind
    with pytest.raises(UnsupportedModelError, match=message):
        graphs.graph_inputs(model)


# Outputs


def test_probabilities_are_found_and_named_and_the_logits_with_them() -> None:
    model = linear(SOFTMAX, outputs=("p",))
    changed, task = graphs.normalise_outputs(model, "auto", SAMPLE)
    assert task is Task.CLASSIFICATION
    assert [o.name for o in changed.graph.output] == ["probabilities", "logits"]
    found = run(changed)
    np.testing.assert_array_equal(found["probabilities"], run(model)["p"])
    np.testing.assert_array_equal(found["logits"], run(linear())["z"])
    assert [t.name for t in changed.graph.initializer] == ["w"]  # what nobody needs is gone
    assert [o.name for o in model.graph.output] == ["p"]  # the given model is left as it was
    onnx.checker.check_model(changed, full_check=True)


def test_logits_get_a_softmax() -> None:
    changed, task = graphs.normalise_outputs(linear(), "logits", SAMPLE)
    assert task is Task.CLASSIFICATION
    found = run(changed)
    e = np.exp(found["logits"] - found["logits"].max(axis=1, keepdims=True))
    np.testing.assert_allclose(found["probabilities"], e / e.sum(axis=1, keepdims=True), atol=1e-6)


def test_an_inner_tensor_that_bears_our_name_makes_room() -> None:
    rows = [helper.make_node("Softmax", ["z"], ["logits"], axis=1), helper.make_node("Identity", ["logits"], ["p"])]
    changed, _ = graphs.normalise_outputs(linear(*rows, outputs=("p",)), "auto", SAMPLE)
    assert [o.name for o in changed.graph.output] == ["probabilities"]
    named = linear(helper.make_node("Mul", ["z", "z"], ["logits"]), outputs=("logits", "z"))
    named.graph.output.pop(0)
    changed, _ = graphs.normalise_outputs(named, "logits", SAMPLE)
    np.testing.assert_array_equal(run(changed)["logits"], run(linear())["z"])


def test_normalising_twice_changes_nothing() -> None:
    once, _ = graphs.normalise_outputs(linear(SOFTMAX, outputs=("p",)), "auto", SAMPLE)
    twice, _ = graphs.normalise_outputs(once, "auto", SAMPLE)
    assert once == twice


def test_a_misinformation_head_is_kept() -> None:
    head = helper.make_node("LogSoftmax", ["z"], ["misinformation"], axis=1)
    changed, _ = graphs.normalise_outputs(linear(SOFTMAX, head, outputs=("p", "misinformation")), "auto", SAMPLE)
    assert [o.name for o in changed.graph.output] == ["probabilities", "logits", "misinformation"]


@pytest.mark.parametrize("zipmap", [True, False])
def test_a_converted_scikit_learn_classifier(zipmap: bool) -> None:
    from skl2onnx import to_onnx

    x, y = load_iris(return_X_y=True)
    x = x.astype(np.float32)
    classifier = LogisticRegression(max_iter=500).fit(x, y)
    model = to_onnx(classifier, x[:1], options={"zipmap": zipmap}, target_opset=17)
    changed, task = graphs.normalise_outputs(graphs.check_model(model, "m"), "auto", {"X": x[:9]})
    assert task is Task.CLASSIFICATION
    np.testing.assert_allclose(run(changed, {"X": x})["probabilities"], classifier.predict_proba(x), atol=1e-5)


def test_other_answers_are_named_too() -> None:
    for declared, task in (("scores", Task.SCORES), ("values", Task.REGRESSION)):
        changed, found = graphs.normalise_outputs(linear(), declared, SAMPLE)  # type: ignore[arg-type]
        assert found is task
        assert [o.name for o in changed.graph.output] == [declared]
    _, found = graphs.normalise_outputs(linear(columns=1), "auto", SAMPLE)
    assert found is Task.REGRESSION
    _, found = graphs.normalise_outputs(linear(), "auto", SAMPLE, Task.REGRESSION)
    assert found is Task.REGRESSION


@pytest.mark.parametrize(
    ("model", "declared", "message"),
    [
        (linear(), "auto", "--output logits"),
        (linear(), "probabilities", "expected an output of at least two columns, non-negative"),
        (linear(columns=1), "logits", "at least two columns"),
        (linear(SOFTMAX, outputs=("z", "p")), "logits", "several outputs"),
        (linear(helper.make_node("ArgMax", ["z"], ["c"], axis=1)), "auto", "--output"),
        (linear(helper.make_node("Shape", ["z"], ["s"]), outputs=("s",)), "auto", "cannot"),
        (
            linear(helper.make_node("ReduceMean", ["z"], ["m"], axes=[0], keepdims=1), outputs=("m",)),
            "auto",
            "one entry",
        ),
    ],
)
def test_answers_that_are_not_plain(model: onnx.ModelProto, declared: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        graphs.normalise_outputs(model, declared, SAMPLE)


def test_an_answer_that_depends_on_the_batch_is_refused() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["z"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["z", "m"], ["d"]),
        helper.make_node("Softmax", ["d"], ["p"], axis=1),
    ]
    with pytest.raises(UnsupportedModelError, match="depends on the other rows"):
        graphs.normalise_outputs(linear(*nodes, outputs=("p",)), "auto", SAMPLE)
