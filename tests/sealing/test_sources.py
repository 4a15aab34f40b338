"""From a model and data, or a HARDENED folder, to what is sealed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.bundle.conftest import CLASSES, FEATURES, make_network
from tests.sealing.test_seal import MISINFORMING, wrong_network

from garrison.bundle.manifest import InputSpec
from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerKey
from garrison.errors import (
    CalibrationError,
    ConfigError,
    GuardError,
    ModelFileError,
    SealingError,
    UnsupportedModelError,
)
from garrison.guard.defenses.budget import Budget
from garrison.guard.defenses.release import Release
from garrison.hardening.artifact import Hardened, write_hardened
from garrison.hardening.data import Rows
from garrison.hardening.graphs import check_model
from garrison.runtime.runner import Runner
from garrison.sealing.draft import Draft
from garrison.sealing.formats.source import Source
from garrison.sealing.inputs import describe_inputs, drawn_rows, rows_from_arrays
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_hardened, draft_from_source
from garrison.types import DefenseSpec, Task


def options(**given: Any) -> SealOptions:
    return SealOptions(**{"name": "model", **given})


def rows(count: int = 400, seed: int = 0, **given: Any) -> Rows:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, FEATURES))
    return rows_from_arrays({"x": x}, **given)


def source(model: onnx.ModelProto | None = None, **given: Any) -> Source:
    return Source(model=check_model(model or make_network(), "test"), format="onnx", sha256="0" * 64, **given)


def names(draft: Draft) -> list[str]:
    return [spec.name for spec in draft.guard]


def parameters(draft: Draft, name: str) -> dict[str, Any]:
    return next(spec.parameters for spec in draft.guard if spec.name == name)


def two_headed() -> onnx.ModelProto:
    """A victim with a second head `misinformation` on its penultimate features."""
    model, rng = make_network(), np.random.default_rng(5)
    model.graph.initializer.append(
        numpy_helper.from_array(rng.normal(size=(16, CLASSES)).astype(np.float32), "w_wrong")
    )
    model.graph.node.append(helper.make_node("MatMul", ["h2", "w_wrong"], ["z_wrong"]))
    model.graph.node.append(helper.make_node("LogSoftmax", ["z_wrong"], ["misinformation"], axis=1))
    model.graph.output.append(helper.make_tensor_value_info("misinformation", TensorProto.FLOAT, ["rows", CLASSES]))
    return model


def linear(outputs: tuple[Any, ...], weights: Any, name: str = "y") -> onnx.ModelProto:
    """One matrix product; the shape of the output as given."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], [name])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", FEATURES])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(np.asarray(weights, dtype=np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# From a model and data


def test_a_plain_classifier_gets_the_plain_chain_and_is_told_of_hardening() -> None:
    draft = draft_from_source(source(), rows(), options())
    assert names(draft) == ["bounds", "max-probability", "release"]
    assert draft.task is Task.CLASSIFICATION
    assert draft.labels == ("0", "1", "2")
    assert any("garrison harden" in note for note in draft.notes)
    assert any("no detectors: they need 2500 calibration rows" in note for note in draft.notes)
    unasked = draft_from_source(source(), rows(), options(detectors=False))
    assert not any("detectors" in note for note in unasked.notes), "control"


def test_a_model_with_a_misinformation_head_is_calibrated(tmp_path: Path) -> None:
    draft = draft_from_source(source(two_headed()), rows(2000), options(benign_loss=0.05))
    assert names(draft) == ["bounds", "max-probability", "adaptive-misinformation", "release"]
    assert 0 < parameters(draft, "adaptive-misinformation")["tau"] < 1
    assert 0 < draft.provenance.metrics["benign_loss"] <= 0.05
    owner = OwnerKey.generate()
    manifest = seal(draft, owner, tmp_path / "b")
    assert manifest.key_commitment
    assert "misinformation" in manifest.graph.outputs


@pytest.mark.parametrize("action", ["refuse", "uncertain"])
def test_a_reject_option_is_calibrated_in_place_of_misinformation(action: str) -> None:
    for model in (make_network(), two_headed()):
        draft = draft_from_source(source(model), rows(2000), options(on_ood=action, benign_loss=0.05))
        assert names(draft) == ["bounds", "max-probability", "reject-option", "release"]
        assert parameters(draft, "reject-option")["action"] == action
        assert draft.provenance.metrics["rejected"] <= 0.05


def test_too_few_rows_for_the_promise_are_told() -> None:
    draft = draft_from_source(source(), rows(100), options(on_ood="refuse"))
    assert any("too few" in note for note in draft.notes)
    with pytest.raises(CalibrationError, match="100"):
        draft_from_source(source(), rows(99), options(on_ood="refuse"))


def test_budget_release_and_shadow_find_their_places() -> None:
    chosen = options(
        budget=Budget(rows=5000, period="day"),
        release=Release(mode="top-k", k=2, decimals=3),
        shadow=frozenset({"bounds"}),
    )
    draft = draft_from_source(source(), rows(), chosen)
    assert names(draft) == ["bounds", "budget", "max-probability", "release"]
    assert parameters(draft, "budget") == {
        "rows": 5000,
        "period": "day",
        "distinct": 0,
        "price_per_1000_rows": 0.0,
    }
    assert parameters(draft, "release") == {"mode": "top-k", "k": 2, "decimals": 3, "radius": False}
    assert [spec.shadow for spec in draft.guard] == [True, False, False, False]
    with pytest.raises(GuardError, match="no such defense"):
        draft_from_source(source(), rows(), options(shadow=frozenset({"energy"})))


def test_logits_get_a_softmax_when_they_are_declared(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(FEATURES, CLASSES))
    model = linear(("rows", CLASSES), weights)
    with pytest.raises(UnsupportedModelError, match="--output logits"):
        draft_from_source(source(model), rows(), options())
    draft = draft_from_source(source(model), rows(), options(output="logits"))
    manifest = seal(draft, OwnerKey.generate(), tmp_path / "b")
    assert set(manifest.graph.outputs) == {"probabilities", "logits"}


def test_scores_have_no_out_of_distribution_score() -> None:
    model = linear(("rows", CLASSES), np.random.default_rng(0).normal(size=(FEATURES, CLASSES)))
    draft = draft_from_source(source(model), rows(), options(output="scores"))
    assert (draft.task, names(draft)) == (Task.SCORES, ["bounds", "release"])
    with pytest.raises(GuardError, match="probabilities"):
        draft_from_source(source(model), rows(), options(output="scores", on_ood="refuse"))


def test_a_regressor_that_answers_one_number_a_row_is_put_into_a_column(tmp_path: Path) -> None:
    weights = np.arange(FEATURES, dtype=np.float32)
    data = rows(y=np.linspace(0, 1, 400))
    draft = draft_from_source(source(linear(("rows",), weights)), data, options())
    assert (draft.task, draft.labels) == (Task.REGRESSION, ())
    owner = OwnerKey.generate()
    assert seal(draft, owner, tmp_path / "b").outputs == 1
    x = data.inputs["x"].astype(np.float32)
    found = Runner(verify(tmp_path / "b", [owner.public])).run({"x": x}).values
    assert found.shape == (400, 1)
    assert np.allclose(found[:, 0], x @ weights, atol=1e-4)


def test_a_regressor_cannot_be_asked_for_classes(tmp_path: Path) -> None:
    data = rows(y=np.linspace(0, 1, 400))
    draft = draft_from_source(
        source(linear(("rows",), np.ones(FEATURES))), data, options(release=Release(mode="labels"))
    )
    with pytest.raises(GuardError, match="real values"):
        seal(draft, OwnerKey.generate(), tmp_path / "b")


def test_labels_come_from_the_owner_the_format_or_the_data() -> None:
    named = rows(labels=["p", "q", "r"])
    assert draft_from_source(source(), named, options()).labels == ("p", "q", "r")
    assert draft_from_source(source(labels=("s", "t", "u")), named, options()).labels == ("s", "t", "u")
    assert draft_from_source(source(), named, options(labels=("v", "w", "x"))).labels == ("v", "w", "x")
    for wrong in (("a", "b"), ("a", "a", "b")):
        with pytest.raises(SealingError, match="label"):
            draft_from_source(source(), rows(), options(labels=wrong))


def test_a_conversion_that_changed_the_answers_is_told() -> None:
    right = source(reference=lambda given: np.full((len(given["x"]), CLASSES), 1 / CLASSES))
    with pytest.raises(UnsupportedModelError, match="differently"):
        draft_from_source(right, rows(), options())


@pytest.mark.parametrize(
    "data",
    [
        rows_from_arrays({"x": np.zeros((5, FEATURES + 1))}),
        rows_from_arrays({"x": np.zeros((1, FEATURES))}),
        rows_from_arrays({"z": np.zeros((5, FEATURES)), "y2": np.zeros((5, 1))}),
        rows_from_arrays({"x": np.full((5, FEATURES), np.nan)}),
        rows_from_arrays({"x": np.full((5, FEATURES), np.inf)}),
    ],
)
def test_data_that_do_not_fit_are_told(data: Rows) -> None:
    with pytest.raises(CalibrationError):
        draft_from_source(source(), data, options())


@pytest.mark.parametrize(
    "given", [{"name": ""}, {"name": "a/b"}, {"name": "a\nb"}, {"version": 0}, {"range_margin": -1}]
)
def test_options_are_checked(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        options(**given)


# Ranges


def spec_of(x: Any, **given: Any) -> InputSpec:
    return describe_inputs({"x": np.asarray(x)}, options(**given))[0]


def test_a_table_gets_a_range_a_feature_with_the_owners_margin() -> None:
    x = np.array([[0.0, 10.0], [1.0, 30.0]], np.float32)
    assert spec_of(x, range_margin=0.0).minimum == pytest.approx((0, 10))
    assert spec_of(x, range_margin=0.0).maximum == pytest.approx((1, 30))
    assert spec_of(x, range_margin=0.1).minimum == pytest.approx((-0.1, 8))
    assert spec_of(x, range_margin=1.0).maximum == pytest.approx((2, 50))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 0.97, (0, 1)), (-0.9, 0.95, (-1, 1)), (3.0, 250.0, (0, 255)), (0.0, 0.3, (0.0, 0.3)), (-5.0, 5.0, (-5, 5))],
)
def test_an_image_gets_one_range_and_a_natural_one_where_it_nearly_fills_it(
    low: float, high: float, expected: tuple[float, float]
) -> None:
    x = np.linspace(low, high, 2 * 3 * 4, dtype=np.float64).reshape(2, 1, 3, 4)
    spec = spec_of(x)
    assert (spec.minimum, spec.maximum) == pytest.approx(expected)
    assert spec.shape == (1, 3, 4)


def test_bytes_and_truth_values_have_their_own_ranges() -> None:
    pixels = spec_of(np.zeros((2, 4, 4), np.uint8) + np.arange(4, dtype=np.uint8))
    assert (pixels.datatype, pixels.minimum, pixels.maximum) == ("UINT8", 0, 255)
    flags = spec_of(np.zeros((2, 4), np.bool_))
    assert (flags.datatype, flags.minimum, flags.maximum) == ("BOOL", 0, 1)


def test_what_may_be_missing_is_what_was_missing_or_what_the_owner_says() -> None:
    x = np.array([[0.0, np.nan], [1.0, 2.0]], np.float32)
    assert spec_of(x).may_be_missing == (False, True)
    assert spec_of(np.nan_to_num(x)).may_be_missing is False
    assert spec_of(np.nan_to_num(x), may_be_missing=True).may_be_missing is True


def test_drawn_rows_are_admitted_and_always_the_same() -> None:
    specs = (
        InputSpec(name="a", datatype="FP32", shape=(2,), minimum=(0.0, 5.0), maximum=(1.0, 6.0)),
        InputSpec(name="b", datatype="INT64", shape=(1, 2), minimum=3.0, maximum=9.0),
    )
    one, two = drawn_rows(specs), drawn_rows(specs)
    assert all(np.array_equal(one[n], two[n]) for n in one)
    assert one["a"].shape == (16, 2)
    assert one["b"].dtype == np.int64
    assert ((one["a"] >= [0, 5]) & (one["a"] <= [1, 6])).all()
    assert ((one["b"] >= 3) & (one["b"] <= 9)).all()


# From a HARDENED folder


@pytest.fixture
def hardened(tmp_path: Path) -> Path:
    description = Hardened(
        task=Task.CLASSIFICATION,
        labels=("a", "b", "c"),
        inputs=(InputSpec(name="x", datatype="FP32", shape=(FEATURES,), minimum=-4.0, maximum=4.0),),
        guard=MISINFORMING,
        metrics={"accuracy": 0.9, "served_accuracy": 0.895},
        data_sha256={"training": "1" * 64},
        outlier_exposure=True,
        versions={"torch": "2.13.0"},
    )
    path = tmp_path / "hardened"
    write_hardened(path, description, make_network().SerializeToString(), wrong_network().SerializeToString())
    return path


def test_a_hardened_model_is_sealed_as_it_was_left(hardened: Path, tmp_path: Path) -> None:
    draft = draft_from_hardened(hardened, options())
    assert draft.guard == MISINFORMING or names(draft) == [spec.name for spec in MISINFORMING]
    assert parameters(draft, "adaptive-misinformation")["tau"] == 0.5
    assert draft.provenance.metrics == {"accuracy": 0.9, "served_accuracy": 0.895}
    assert draft.provenance.outlier_exposure
    assert draft.provenance.versions["torch"] == "2.13.0"
    assert "garrison" in draft.provenance.versions
    owner = OwnerKey.generate()
    manifest = seal(draft, owner, tmp_path / "b")
    assert manifest.misinformation is not None
    assert manifest.key_commitment
    verify(tmp_path / "b", [owner.public])


def test_choices_at_sealing_lie_on_top_of_a_hardened_chain(hardened: Path) -> None:
    chosen = options(
        budget=Budget(rows=10), release=Release(mode="labels"), shadow=frozenset({"adaptive-misinformation"})
    )
    draft = draft_from_hardened(hardened, chosen, rows())
    assert names(draft) == ["bounds", "budget", "max-probability", "adaptive-misinformation", "release"]
    assert parameters(draft, "release")["mode"] == "labels"
    assert [s.name for s in draft.guard if s.shadow] == ["adaptive-misinformation"]
    assert len(draft.rows["x"]) == 64
    exchanged = draft_from_hardened(hardened, options(on_ood="uncertain"))
    assert names(exchanged) == ["bounds", "max-probability", "reject-option", "release"]
    assert exchanged.misinformation is None, "what the chain does not use is not sealed"
    assert parameters(exchanged, "reject-option") == {"tau": 0.5, "action": "uncertain"}


def test_a_chain_without_a_threshold_has_nothing_to_exchange(hardened: Path, tmp_path: Path) -> None:
    plain = msgspec.structs.replace(
        msgspec.json.decode((hardened / "hardened.json").read_bytes(), type=Hardened),
        guard=(DefenseSpec(name="bounds"), DefenseSpec(name="release")),
        misinformation=None,
    )
    write_hardened(tmp_path / "plain", plain, make_network().SerializeToString())
    with pytest.raises(GuardError, match="threshold"):
        draft_from_hardened(tmp_path / "plain", options(on_ood="refuse"))


def test_a_changed_hardened_folder_is_told(hardened: Path) -> None:
    (hardened / "misinformation.onnx").write_bytes(make_network(3).SerializeToString())
    with pytest.raises(ModelFileError, match="changed"):
        draft_from_hardened(hardened, options())
