"""What chosen defenses learn at sealing, and the graph that answers squeezed copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models import BOUNDS, CLASSES, PIXELS, RELEASE, SCORE, images, misinform, mlp, seal_mlp
from tests.sealing.test_guarded import Forms, batch_of

from garrison.bundle.manifest import InputSpec, input_facts
from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerKey
from garrison.enclave.service import Service
from garrison.errors import CalibrationError, ConfigError, GarrisonError, GuardError, UnsupportedModelError
from garrison.guard.defenses.feature_squeezing import FeatureSqueezing
from garrison.guard.graph_form import GraphForm, settings_of
from garrison.guard.numpy_form import NumpyForm
from garrison.guard.pipeline import Pipeline
from garrison.guard.squeezing import squeezed
from garrison.hardening.scoring import open_session, score
from garrison.runtime.runner import Runner
from garrison.sealing.completing import complete, threshold_of
from garrison.sealing.copies import with_copies
from garrison.sealing.formats import read_source
from garrison.sealing.inputs import rows_from_arrays
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_source
from garrison.types import DefenseSpec, Task

SPEC = InputSpec(name="image", datatype="FP32", shape=PIXELS, minimum=0.0, maximum=1.0)


@pytest.mark.parametrize(("bits", "window"), [(4, 2), (0, 3), (2, 0)])
def test_copies_are_answered_in_the_same_run_as_rows_of_their_own(bits: int, window: int) -> None:
    defense, x = FeatureSqueezing(bits=bits, window=window), images(9)
    model = with_copies(mlp(), SPEC, defense, "probabilities", {"image": x})
    plain = open_session(mlp().SerializeToString())
    found = score(open_session(model.SerializeToString()), {"image": x})
    alone = score(plain, {"image": x})
    for name, value in alone.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
    copies = squeezed(np, x, input_facts(SPEC), bits, window)
    expected = np.concatenate([score(plain, {"image": c.astype(np.float32)})["probabilities"] for c in copies], axis=1)
    np.testing.assert_allclose(found["squeezed"], expected, rtol=1e-4, atol=1e-5)
    assert found["squeezed"].shape == (9, len(copies) * CLASSES)


def mixing() -> onnx.ModelProto:
    """A model whose answer to a row depends on the rows beside it."""
    w = numpy_helper.from_array(np.random.default_rng(0).normal(size=(64, CLASSES)).astype(np.float32), "w")
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("ReduceMean", ["flat", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["flat", "mean"], ["rest"]),
        helper.make_node("MatMul", ["rest", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *PIXELS])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", CLASSES])]
    graph = helper.make_graph(nodes, "mixing", inputs, outputs, [w, axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_model_that_mixes_rows_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="copies cannot be stacked"):
        with_copies(mixing(), SPEC, FeatureSqueezing(), "probabilities", {"image": images(9)})


def sealed(folder: Path, *defenses: str, rows: int = 400) -> Service:
    onnx.save(mlp(), str(folder / "m.onnx"))
    options = SealOptions(name="small", defenses=defenses, detectors=False, drift=False)
    data = rows_from_arrays({"image": images(rows, seed=3)})
    owner = OwnerKey.generate()
    manifest = seal(draft_from_source(read_source(folder / "m.onnx"), data, options), owner, folder / "b")
    key = owner.misinformation_key("small") if manifest.key_commitment else None
    return Service(verify(folder / "b", [owner.public]), key=key)


def test_squeezing_is_calibrated_to_its_false_alarms_and_runs_in_the_graph(tmp_path: Path) -> None:
    service = sealed(tmp_path, "feature-squeezing:false_alarms=0.1", "reject-option:tau=0.05")
    assert service.guard_form == "graph"
    figures = service.manifest.provenance.metrics
    assert 0.05 < figures["squeezing_false_alarms"] <= figures["squeezing_false_alarms_high"] <= 0.1
    fresh = service.predict({"image": images(1_000, seed=8)})
    assert fresh.uncertain.mean() == pytest.approx(0.1, abs=0.05)
    spec = next(s for s in service.chain if s.name == "feature-squeezing")
    assert 0 < spec.parameters["threshold"] < 2


def test_a_schema_is_learned_and_refuses_what_no_honest_row_holds(tmp_path: Path) -> None:
    onnx.save(mlp(), str(tmp_path / "m.onnx"))
    x = (images(300, seed=3) > 0.5).astype(np.float32)
    options = SealOptions(name="small", defenses=("schema",), detectors=False, drift=False, on_ood="uncertain")
    owner = OwnerKey.generate()
    seal(
        draft_from_source(read_source(tmp_path / "m.onnx"), rows_from_arrays({"image": x}), options),
        owner,
        tmp_path / "b",
    )
    service = Service(verify(tmp_path / "b", [owner.public]))
    assert service.guard_form == "graph"
    assert len(service.predict({"image": x[:20]}).uncertain) == 20
    grey = x[:1].copy()
    grey[0, 0, 4, 4] = 0.5
    with pytest.raises(GarrisonError, match="none of the values that its feature takes"):
        service.predict({"image": grey})


def test_smoothing_runs_in_numpy_and_releases_its_radius(tmp_path: Path) -> None:
    onnx.save(mlp(head=False), str(tmp_path / "m.onnx"))
    choice = "randomized-smoothing:copies=40,choosing=8,sigma=0.05,tell=true"
    options = SealOptions(name="small", defenses=(choice,), detectors=False, drift=False)
    data = rows_from_arrays({"image": images(300, seed=3)})
    owner = OwnerKey.generate()
    seal(draft_from_source(read_source(tmp_path / "m.onnx"), data, options), owner, tmp_path / "b")
    service = Service(verify(tmp_path / "b", [owner.public]), key=owner.misinformation_key("small"))
    assert service.guard_form.startswith("numpy: randomized-smoothing")
    answer = service.predict({"image": images(30, seed=5)})
    radius = answer.outputs["certified_radius"]
    assert radius.shape == (30, 1)
    assert ((radius[:, 0] > 0) == ~answer.uncertain).all()
    assert (radius > 0).any()


def test_what_needs_rows_says_so() -> None:
    for name in ("schema", "feature-squeezing"):
        chain = (DefenseSpec(name="bounds"), DefenseSpec(name=name), DefenseSpec(name="release"))
        with pytest.raises(ConfigError, match="--data is needed"):
            complete(mlp(), chain, Task.CLASSIFICATION, (SPEC,), None, {"image": images(4)}, frozenset({name}))
    with pytest.raises(ConfigError, match="another server runs"):
        complete(None, chain, Task.CLASSIFICATION, (SPEC,), None, {}, frozenset({name}))
    table = InputSpec(name="row", datatype="FP32", shape=(12,), minimum=0.0, maximum=1.0)
    with pytest.raises(GuardError, match="squeezes pictures"):
        complete(mlp(), chain, Task.CLASSIFICATION, (table,), None, {}, frozenset({name}))


def test_too_few_rows_promise_no_share_of_false_alarms() -> None:
    apart = np.linspace(0, 1, 100)
    with pytest.raises(CalibrationError, match="at least 299 rows"):
        threshold_of(apart, 0.01)
    assert threshold_of(apart, 0.05) > 0.97
    assert (np.linspace(0, 1, 1_000) > threshold_of(np.linspace(0, 1, 1_000), 0.05)).mean() < 0.05


SQUEEZING = {"threshold": 0.4, "bits": 2}


@pytest.mark.parametrize("shadow", [False, True])
@pytest.mark.parametrize("action", ["distrust", "refuse"])
def test_the_graph_squeezes_as_numpy_does(tmp_path: Path, action: str, *, shadow: bool) -> None:
    """In shadow it counts, and takes no row's confidence."""
    spec = DefenseSpec(name="feature-squeezing", parameters={**SQUEEZING, "action": action}, shadow=shadow)
    forms = Forms(seal_mlp(tmp_path / "bundle", (BOUNDS, SCORE, spec, misinform(0.4), RELEASE)))
    progress, _ = forms.agree(batch_of(images(64, seed=6)))
    lost = np.isnan(progress.signals.get("confidence", np.zeros(1))).any()
    counted = progress.shadow.get("feature-squeezing", np.zeros(1)).sum()
    assert (counted > 0) == shadow
    assert not (lost and shadow)
    if not shadow:
        assert any(progress.refused) if action == "refuse" else progress.replaced.any()


def test_an_alarm_of_watch_does_not_judge_the_copies_again(tmp_path: Path) -> None:
    """Squeezing stands before watch in the chain: what watch changes afterwards is none of its business."""
    squeezing = DefenseSpec(name="feature-squeezing", parameters=SQUEEZING)
    ringing = {"ood-rate": {"threshold": 8.0, "edges": [0.5], "nats": [2.5, 2.0]}}
    watch = DefenseSpec(name="watch", parameters={"detectors": ringing, "remembered": 0})
    projection = DefenseSpec(name="projection")
    sealed = seal_mlp(tmp_path / "bundle", (BOUNDS, projection, SCORE, squeezing, watch, misinform(0.4), RELEASE))
    bundle = sealed.verified()
    assert bundle.manifest.guarded is not None, bundle.manifest.numpy_because
    one, two = (Pipeline(bundle.manifest.guard, bundle.manifest.facts(), sealed.key) for _ in range(2))
    graph, numpy = GraphForm(one, Runner(bundle, settings=settings_of(one))), NumpyForm(two, Runner(bundle).run)
    for seed in range(3):
        batch = batch_of(images(12, seed=seed), (12,))
        found, wanted = graph(batch), numpy(batch)
        assert found is not None
        np.testing.assert_array_equal(found[0].replaced, wanted[0].replaced)
        np.testing.assert_allclose(
            found[1].outputs["probabilities"], wanted[1].outputs["probabilities"], rtol=1e-5, atol=1e-5
        )
    assert found is not None
    assert found[0].replaced.all(), "control: the alarm rang"
