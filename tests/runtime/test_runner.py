from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tests.models import images, seal_mlp

from garrison.limits import Limits
from garrison.runtime.runner import Runner, example_inputs


@pytest.mark.parametrize("rows", [1, 2, 37, 300])
def test_equals_the_plain_runtime(tmp_path: Path, rows: int) -> None:
    sealed = seal_mlp(tmp_path / "bundle")
    x = images(rows)
    plain = ort.InferenceSession(sealed.model.SerializeToString()).run(
        ["probabilities", "logits", "misinformation"], {"image": x}
    )
    raw = Runner(sealed.verified()).run({"image": x})
    np.testing.assert_allclose(raw.values, plain[0], atol=1e-6)
    assert raw.logits is not None
    np.testing.assert_allclose(raw.logits, plain[1], atol=1e-5)
    assert raw.misinformation is not None
    index = np.arange(0, rows, 2)
    np.testing.assert_allclose(raw.misinformation(index), plain[2][index], atol=1e-5)


def test_slices_change_nothing(tmp_path: Path) -> None:
    bundle = seal_mlp(tmp_path / "bundle").verified()
    x = {"image": images(37)}
    np.testing.assert_allclose(
        Runner(bundle, Limits(compute_rows=5)).run(x).values, Runner(bundle).run(x).values, atol=1e-6
    )


def test_an_own_network_for_misinformation(tmp_path: Path) -> None:
    raw = Runner(seal_mlp(tmp_path / "bundle", own_network=True).verified()).run({"image": images(9)})
    assert raw.misinformation is not None
    wrong = raw.misinformation(np.array([2, 5]))
    assert wrong.shape == (2, 5)
    np.testing.assert_allclose(np.exp(wrong).sum(axis=1), 1.0, atol=1e-5)


def test_the_parameters_come_from_the_bundle(tmp_path: Path) -> None:
    """Control: another bundle's parameters give other answers."""
    one, other = (Runner(seal_mlp(tmp_path / str(seed), seed=seed).verified()) for seed in (0, 1))
    assert not np.allclose(one.run({"image": images(4)}).values, other.run({"image": images(4)}).values)


def test_example_inputs_are_admissible(tmp_path: Path) -> None:
    manifest = seal_mlp(tmp_path / "bundle").verified().manifest
    assert example_inputs(manifest.inputs, 3)["image"].shape == (3, 1, 8, 8)
