"""Scores over inner features, as a part of the model's graph: against plain numpy, and at what they are for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from tests.guard.conftest import make_facts
from tests.models import images, mlp

from garrison.errors import CalibrationError, GuardError, UnsupportedModelError
from garrison.guard.defenses.knn import Knn
from garrison.guard.defenses.mahalanobis import Mahalanobis
from garrison.hardening import feature_scores
from garrison.hardening.artifact import write_hardened
from garrison.hardening.calibration import confidence_of
from garrison.hardening.data import Part, read_npz
from garrison.hardening.feature_scores import add_feature_score, bank_rows, penultimate
from garrison.hardening.harden import Options, harden
from garrison.hardening.measures import auroc
from garrison.hardening.scoring import open_session, score
from garrison.sealing.options import SealOptions
from garrison.sealing.sources import draft_from_hardened
from garrison.types import Array

NAMES = ("mahalanobis", "knn")
ROWS = Part({"image": images(300, seed=1)}, np.arange(300) % 5)


def found(name: str, x: Array, training: Part = ROWS) -> tuple[Array, Array]:
    """The score, and the features that it looks at."""
    model = add_feature_score(mlp(), name, training)
    model.graph.output.append(helper.make_empty_tensor_value_info("r"))
    answers = score(open_session(model.SerializeToString()), {"image": x})
    return answers[name], answers["r"]


def test_the_last_dense_layers_features_are_found() -> None:
    assert penultimate(mlp().graph) == "r"


def test_mahalanobis_is_the_distance_to_the_nearest_mean() -> None:
    x = images(40, seed=2)
    value, z = found("mahalanobis", x)
    _, known = found("mahalanobis", ROWS.inputs["image"])
    means = np.stack([known[ROWS.y == k].mean(axis=0) for k in range(5)])
    shared = EmpiricalCovariance(assume_centered=True).fit((known - means[ROWS.y]).astype(np.float64)).covariance_
    shared += feature_scores.SHRINKAGE * np.trace(shared) / len(shared) * np.eye(len(shared))
    squares = [np.einsum("nd,de,ne->n", z - m, np.linalg.inv(shared), z - m) for m in means]
    np.testing.assert_allclose(value[:, 0], -np.sqrt(np.min(squares, axis=0) / z.shape[1]), rtol=2e-3)


def test_knn_is_the_distance_to_the_kth_neighbour() -> None:
    x = images(40, seed=2)
    value, z = found("knn", x)
    _, known = found("knn", ROWS.inputs["image"])
    assert ROWS.y is not None
    bank = known[bank_rows(ROWS.y, 0)]
    bank, unit = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (bank, z))
    distances, _ = NearestNeighbors(n_neighbors=feature_scores.NEIGHBOUR).fit(bank).kneighbors(unit)
    np.testing.assert_allclose(value[:, 0], -distances[:, -1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_known_is_not_trusted(name: str) -> None:
    """NaN must not become the best of all scores."""
    x = images(3)
    x[1, 0, 0, 0], x[2, 0, 0, 0] = np.nan, np.inf
    value, _ = found(name, x)
    assert np.isfinite(value[0]).all()
    assert not (value[1:] >= -1e9).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_row_alone_is_scored_as_in_a_batch(name: str) -> None:
    x = images(37, seed=4)
    session = open_session(add_feature_score(mlp(), name, ROWS).SerializeToString())
    together = score(session, {"image": x}, [name])[name]
    alone = np.concatenate([score(session, {"image": x[i : i + 1]}, [name])[name] for i in range(37)])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)


def test_graphs_that_have_no_inner_features() -> None:
    linear = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor("w", TensorProto.FLOAT, [4, 3], np.ones(12))],
    )
    model = helper.make_model(linear, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(UnsupportedModelError, match="max-probability or energy"):
        add_feature_score(model, "knn", Part({"x": np.ones((50, 4), np.float32)}, None))
    old = mlp()
    old.opset_import[0].version = 9
    with pytest.raises(UnsupportedModelError, match="operator set 11"):
        add_feature_score(old, "knn", ROWS)


def test_too_few_rows_and_unknown_scores() -> None:
    with pytest.raises(CalibrationError, match="more than 10"):
        add_feature_score(mlp(), "knn", Part({"image": images(5)}, None))
    with pytest.raises(CalibrationError, match="expected one of"):
        add_feature_score(mlp(), "energy", ROWS)
    with pytest.raises(CalibrationError, match="not at hand"):
        confidence_of("knn", np.full((3, 3), 1 / 3))


@pytest.mark.parametrize("name", NAMES)
def test_hardened_with_it_and_sealed(name: str, folder: Path, tmp_path: Path) -> None:
    options = Options(score=name, benign_loss=0.01)  # type: ignore[arg-type]
    result = harden(
        folder / "headed.onnx", read_npz(folder / "train.npz"), read_npz(folder / "unseen.npz"), options=options
    )
    chain = [spec.name for spec in result.description.guard]
    assert chain == ["bounds", name, "adaptive-misinformation", "release"]
    metrics = result.description.metrics
    assert metrics["benign_loss_high"] <= 0.01
    assert metrics["outliers_auroc"] > 0.85
    assert result.model is not None
    assert onnx.load_from_string(result.model).graph.output[-1].name == name
    write_hardened(tmp_path / "hardened", result.description, result.model, result.misinformation)
    draft = draft_from_hardened(tmp_path / "hardened", SealOptions(name="digits"))
    assert draft.model is not None
    assert name in {output.name for output in draft.model.graph.output}


def test_the_chain_needs_the_graphs_own_score() -> None:
    for offered, right in (("mahalanobis", Mahalanobis()), ("knn", Knn())):
        facts = replace(make_facts(), feature_score=offered)
        right.check(facts)
        with pytest.raises(GuardError, match="garrison harden --score"):
            (Knn() if right.name == "mahalanobis" else Mahalanobis()).check(facts)
        with pytest.raises(GuardError, match="offers none"):
            right.check(make_facts())


@pytest.mark.parametrize("name", NAMES)
def test_it_tells_far_rows_from_near_ones(name: str) -> None:
    """The control is the score that the model itself is sure of: far along a class's own direction it is surer than ever."""
    rng = np.random.default_rng(0)
    y = np.arange(600) % 3
    x = (rng.normal(size=(600, 8)) + 4 * np.eye(3, 8)[y]).astype(np.float32)
    fit = LogisticRegression().fit(x, y)
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["features"]),
            helper.make_node("Gemm", ["features", "w", "b"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor("w", TensorProto.FLOAT, [8, 3], fit.coef_.T.ravel()),
            helper.make_tensor("b", TensorProto.FLOAT, [3], fit.intercept_),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = open_session(add_feature_score(model, name, Part({"x": x}, y)).SerializeToString())
    far = (4 * np.eye(3, 8)[y] * 3 + np.r_[np.zeros(3), np.full(5, 6.0)]).astype(np.float32)
    inside, outside = score(session, {"x": x}), score(session, {"x": far})
    assert auroc(inside[name][:, 0], outside[name][:, 0]) > 0.9
    assert auroc(inside["probabilities"].max(axis=1), outside["probabilities"].max(axis=1)) < 0.2
