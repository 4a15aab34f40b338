from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sklearn.datasets import load_wine

from garrison.errors import CalibrationError, GuardError, UnsupportedModelError
from garrison.hardening import export
from garrison.hardening.data import read_npz
from garrison.hardening.harden import Options, Result, harden
from garrison.hardening.measuring import Victim, serve
from garrison.hardening.misinformation import train_network
from garrison.hardening.ranges import input_specs
from garrison.hardening.training import Training
from garrison.types import Array

from .conftest import Digits

ONE_THREAD = Options(threads=1, benign_loss=0.01)


def run(folder: Path, model: str = "headed.onnx", *, unseen: bool = True, options: Options = ONE_THREAD) -> Result:
    calibration = read_npz(folder / "unseen.npz") if unseen else None
    return harden(folder / model, read_npz(folder / "train.npz"), calibration, options=options)


def names(result: Result) -> list[str]:
    return [spec.name for spec in result.description.guard]


def parameters(result: Result, name: str) -> dict[str, Any]:
    return next(spec.parameters for spec in result.description.guard if spec.name == name)


@pytest.fixture(scope="module")
def headed(folder: Path) -> Result:
    return run(folder)


def test_a_model_with_a_head_is_only_calibrated(headed: Result) -> None:
    assert headed.misinformation is None
    assert names(headed) == ["bounds", "max-probability", "adaptive-misinformation", "release"]
    assert parameters(headed, "adaptive-misinformation")["tau"] == headed.calibration.tau
    assert headed.description.labels[:2] == ("digit 0", "digit 1")
    assert set(headed.description.data_sha256) == {"training", "calibration"}
    assert onnx.load_from_string(headed.model).graph.output[0].name == "probabilities"


def test_the_figures_are_those_of_the_chain(headed: Result, digits: Digits) -> None:
    m = headed.description.metrics
    assert m["accuracy"] > 0.93
    assert m["accuracy"] - m["benign_loss"] <= m["served_accuracy"] + 2e-6
    assert m["benign_loss"] <= m["benign_loss_high"] <= m["benign_loss_asked"] == 0.01
    assert m["misinformation_loss"] < m["misinformation_loss_untrained"]
    assert 0.5 <= m["outliers_auroc"] <= 1
    assert m["misinformation_classes"] >= 8
    assert m["misinformation_entropy"] >= 0.8


@pytest.fixture(scope="module")
def headless(folder: Path) -> Result:
    return run(folder, "model.onnx")


def test_a_model_without_a_head_gets_an_f_of_its_own(headless: Result) -> None:
    found = headless
    assert found.misinformation is not None
    description = found.description
    assert found.model is not None
    victim = Victim(
        found.model, ("probabilities",), description.inputs, description.labels, np.dtype("f4"), 1, found.misinformation
    )
    noise = np.random.default_rng(0).random((200, 1, 16, 16)).astype(np.float32)
    served = serve(victim, description.guard, {"image": noise})
    clearly = served.confidence < found.calibration.tau - 0.02  # nearer to tau the two answers are mixed
    assert clearly.any()
    assert served.replaced[clearly].all()
    own = served.raw["probabilities"].argmax(axis=1)
    same = np.mean(served.answer.argmax(axis=1)[clearly] == own[clearly])
    assert same < 3 / served.answer.shape[1]  # f's own choice comes as often as chance, about one in ten


def test_without_calibration_rows_a_fifth_is_held_out_and_said_so(folder: Path) -> None:
    found = run(folder, unseen=False)
    assert found.description.metrics["calibration_rows"] == 200
    assert set(found.description.data_sha256) == {"training"}
    assert any("--calibration" in note for note in found.notes)
    assert any("too few" in note for note in found.notes)


@pytest.mark.parametrize("action", ["refuse", "uncertain"])
def test_owners_who_may_not_misinform(folder: Path, action: Any) -> None:
    found = run(folder, "model.onnx", options=replace(ONE_THREAD, on_ood=action))
    assert found.misinformation is None
    assert parameters(found, "reject-option")["action"] == action
    assert "misinformation_loss" not in found.description.metrics
    m = found.description.metrics
    assert m["accuracy"] - m["served_accuracy"] <= m["benign_loss"] + 2e-6


def test_energy_budget_release_and_labels(folder: Path) -> None:
    options = replace(
        ONE_THREAD,
        score="energy",
        budget={"rows": 500, "period": "day"},
        release={"mode": "top-k", "k": 2},
        labels=tuple("abcdefghij"),
        constant_time=True,
    )
    found = run(folder, options=options)
    assert names(found) == ["bounds", "budget", "energy", "adaptive-misinformation", "release"]
    assert parameters(found, "adaptive-misinformation")["constant_time"] is True
    assert found.description.labels == tuple("abcdefghij")
    assert found.description.metrics["benign_loss"] <= 0.01


@pytest.mark.slow
def test_hardening_is_repeatable(folder: Path, headed: Result, headless: Result) -> None:
    again = run(folder)
    assert again.description.guard == headed.description.guard
    assert again.model == headed.model
    assert run(folder, "model.onnx").misinformation == headless.misinformation


def test_a_table_without_labels(tmp_path: Path) -> None:
    """A network over 13 features of wine, saved as a user would; f' learns from the victim's own answers."""
    x, y = load_wine(return_X_y=True)
    x = np.asarray(x, dtype=np.float32)
    network = train_network(x, y.astype(np.int64), 3, options=Training(epochs=1, threads=1))
    inputs = {"features": x}
    model = onnx.load_from_string(export.misinformation_graph(network, input_specs(inputs), inputs))
    model.graph.node.append(onnx.helper.make_node("Exp", ["misinformation"], ["p"]))
    model.graph.output[0].name = "p"
    (tmp_path / "wine.onnx").write_bytes(model.SerializeToString())
    np.savez(tmp_path / "wine.npz", x=np.concatenate([x, x, x, x]))
    found = harden(tmp_path / "wine.onnx", read_npz(tmp_path / "wine.npz"), options=ONE_THREAD)
    assert found.misinformation is not None
    assert found.description.labels == ("0", "1", "2")
    assert not found.calibration.labelled
    assert any("no labels" in note for note in found.notes)
    assert "accuracy" not in found.description.metrics


def wrong_y(digits: Digits) -> Array:
    y: Array = digits.unseen_y + 5
    return y


@pytest.mark.parametrize(
    ("arrays", "options", "kind", "message"),
    [
        ({"y": wrong_y}, {}, CalibrationError, "0 to 9"),
        ({"y": lambda d: d.unseen_y + 0.25}, {}, CalibrationError, "real values"),
        ({"x": lambda d: d.unseen_x[:, :, :8]}, {}, CalibrationError, "rows of"),
        ({"x": lambda d: d.unseen_x * np.nan}, {}, UnsupportedModelError, "NaN"),
        ({}, {"labels": ("a", "b")}, CalibrationError, "10 different labels"),
        ({}, {"labels": ("a",) * 10}, CalibrationError, "10 different labels"),
        ({}, {"benign_loss": 2.0}, CalibrationError, "between 0 and 1"),
        ({}, {"budget": {"rows": 0}}, GuardError, "budget"),
        ({}, {"release": {"mode": "top-k", "k": 11}}, GuardError, "release"),
        ({}, {"release": {"mode": "rounded"}}, GuardError, "decimals"),
        ({}, {"output": "scores"}, UnsupportedModelError, "sealed as it is"),
        ({}, {"bounds": (0.0, 0.5)}, CalibrationError, "outside the given range"),
    ],
)
def test_bad_wishes(
    folder: Path, digits: Digits, tmp_path: Path, arrays: dict[str, Any], options: Any, kind: Any, message: str
) -> None:
    made = {"x": lambda d: d.unseen_x, "y": lambda d: d.unseen_y} | arrays
    np.savez(tmp_path / "c.npz", **{name: make(digits) for name, make in made.items()})
    with pytest.raises(kind, match=message):
        harden(
            folder / "headed.onnx",
            read_npz(folder / "train.npz"),
            read_npz(tmp_path / "c.npz"),
            options=replace(ONE_THREAD, **options),
        )
