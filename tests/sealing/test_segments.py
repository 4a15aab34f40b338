"""The manifest says whether a model can be run in segments, and the reason where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from tests.bundle.conftest import make_draft, make_network
from tests.models import images, seal_mlp
from tests.runtime.networks import NETWORKS, export, rows_of

from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerKey
from garrison.errors import ConfigError
from garrison.hardening.scoring import open_session, score
from garrison.runtime import segments
from garrison.runtime.runner import ON_DEMAND, Runner, pieces_of
from garrison.sealing.parameters import split
from garrison.sealing.seal import seal
from garrison.sealing.segments import why_whole


@pytest.mark.parametrize("name", ["MLP", "ResNet-18"])
def test_networks_can_be_cut(name: str) -> None:
    make, shape = NETWORKS[name]
    model = export(make(), shape)
    rows = {"x": rows_of(shape, 5)}
    expected = score(open_session(model.SerializeToString()), rows)
    assert why_whole(*split(model), rows, expected) == ""
    wrong = {"probabilities": expected["probabilities"] + 0.1}
    assert "does not answer" in why_whole(*split(model), rows, wrong), "control: another answer is noticed"


def test_a_small_model_is_run_whole_and_the_manifest_says_so(tmp_path: Path) -> None:
    owner = OwnerKey.generate()
    manifest = seal(make_draft(), owner, tmp_path / "b")
    assert "small" in manifest.graph.whole
    runner = Runner(verify(tmp_path / "b", [owner.public]), parameter_memory=1)
    assert runner.parameters == f"whole: {manifest.graph.whole}"
    assert runner.budget.used == sum(chunk.size for chunk in manifest.graph.chunks)


def test_a_tree_ensemble_is_run_whole() -> None:
    sklearn = pytest.importorskip("sklearn.ensemble")
    skl2onnx = pytest.importorskip("skl2onnx")
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    forest = sklearn.RandomForestClassifier(20, random_state=0).fit(x, x[:, 0] > 0)
    model = skl2onnx.to_onnx(forest, x[:1], options={"zipmap": False})
    expected = score(open_session(model.SerializeToString()), {"X": x[:5]})
    why = why_whole(*split(model), {"X": x[:5]}, {"probabilities": expected["probabilities"]})
    assert "tree ensemble" in why


def test_an_answer_that_no_node_makes_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LEAST_BYTES", 0)
    monkeypatch.setattr(segments, "PARAMETER_BYTES", 64)
    model = make_network()
    model.graph.output.append(helper.make_tensor_value_info("x", 1, ["rows", 6]))
    rows = make_draft().rows
    expected = {"probabilities": np.zeros((5, 3), np.float32), "x": rows["x"]}
    why = why_whole(*split(model), rows, expected)
    assert "an answer is an input" in why or "write down" in why


def test_a_network_of_its_own_for_misinformation_shares_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "LEAST_BYTES", 0)
    monkeypatch.setattr(segments, "PARAMETER_BYTES", 64)
    bundle = seal_mlp(tmp_path / "b", own_network=True).verified()
    manifest = bundle.manifest
    assert manifest.misinformation is not None
    pieces = pieces_of(bundle, manifest.graph, [n for n in manifest.graph.outputs if n != "misinformation"])
    assert "no place" in manifest.misinformation.whole, "one layer: it stays whole, and is counted"
    least = max(pieces.sizes) + pieces.kept_bytes + sum(chunk.size for chunk in manifest.misinformation.chunks)
    with pytest.raises(ConfigError, match=f"at least {least:,}"):
        Runner(bundle, parameter_memory=least - 1)
    tight, whole = Runner(bundle, parameter_memory=least), Runner(bundle)
    assert tight.parameters == ON_DEMAND
    assert tight.budget.used <= least
    x, rows = {"image": images(9)}, np.array([2, 5])
    one, other = tight.run(x), whole.run(x)
    np.testing.assert_allclose(one.values, other.values, atol=1e-5)
    assert one.misinformation is not None
    assert other.misinformation is not None
    np.testing.assert_allclose(one.misinformation(rows), other.misinformation(rows), atol=1e-5)
