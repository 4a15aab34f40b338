"""Every format by the same commands, on real data: seal, serve on a real port, ask over HTTP, compare with the library's own answers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.commands import as_json, run, save

from garrison import datasets
from garrison.client import Client
from garrison.errors import InputError
from garrison.types import Array

TOLERANCE = 1e-5
"""Of a probability; the graphs compute in single precision."""
Trained = tuple[Path, Array, Array]
"""Model file, rows, the library's own answers."""


def letters(*, holes: bool = False) -> tuple[Array, Array, tuple[str, ...]]:
    found = datasets.load("letters")
    assert found.y is not None
    x, y = found.x[:3000].copy(), found.y[:3000]
    if holes:
        x[np.random.default_rng(0).random(x.shape) < 0.05] = np.nan
    return x, y, found.labels


def scikit_learn(folder: Path) -> Trained:
    linear_model, io = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("skops.io")
    pytest.importorskip("skl2onnx")
    x, y, labels = letters()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = linear_model.LogisticRegression(max_iter=60).fit(x, np.array(labels)[y])
    io.dump(model, folder / "model.skops")
    return folder / "model.skops", x, model.predict_proba(x)


def xgboost(folder: Path) -> Trained:
    x, y, _ = letters(holes=True)
    model = pytest.importorskip("xgboost").XGBClassifier(n_estimators=8, n_jobs=1).fit(x, y)
    model.save_model(folder / "model.ubj")
    return folder / "model.ubj", x, model.predict_proba(x)


def lightgbm(folder: Path) -> Trained:
    x, y, _ = letters(holes=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = pytest.importorskip("lightgbm").LGBMClassifier(n_estimators=8, verbosity=-1, n_jobs=1).fit(x, y)
    model.booster_.save_model(folder / "model.txt")
    return folder / "model.txt", x, model.booster_.predict(x)


def pytorch(folder: Path) -> Trained:
    torch = pytest.importorskip("torch")
    x, y, _ = letters()
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 26), torch.nn.Softmax(1)
    )
    rows, targets = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.nll_loss(torch.log(network(rows) + 1e-9), targets).backward()
        optimiser.step()
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (rows[:2],), dynamic_shapes=({0: torch.export.Dim("rows")},))
        torch.export.save(program, folder / "model.pt2")
    with torch.no_grad():
        return folder / "model.pt2", x, network(rows).numpy()


@contextlib.contextmanager
def served(bundle: Path, trust: Path, folder: Path) -> Iterator[str]:
    """`garrison serve` in a process of its own; yields its URL."""
    words = [
        sys.executable,
        "-m",
        "garrison",
        "serve",
        str(bundle),
        "--trust",
        str(trust),
        "--port",
        "0",
        "--isolation",
        "none",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=folder
    )
    try:
        yield server.stdout.readline().strip() if server.stdout else ""
    finally:
        server.terminate()
        server.communicate()


def sealed(path: Path, data: Path, folder: Path) -> tuple[Path, Path]:
    """The bundle and the key to trust."""
    assert run("keygen", "-o", str(folder / "owner")).exit_code == 0
    key = ("--key", str(folder / "owner.key"))
    done = run("seal", str(path), *key, "--data", str(data), "--no-detectors", "-o", str(folder / "bundle"))
    assert done.exit_code == 0, done.output
    return folder / "bundle", folder / "owner.pub"


@pytest.mark.parametrize("train", [scikit_learn, xgboost, lightgbm, pytorch], ids=lambda f: f.__name__)
def test_a_model_is_sealed_served_and_answers_as_its_library_does(
    train: Callable[[Path], Trained], tmp_path: Path
) -> None:
    path, x, expected = train(tmp_path)
    x = x.astype(np.float32)
    _, y, labels = letters()
    data = save(tmp_path / "data.npz", x=x, y=y, labels=np.array(labels))
    bundle, trust = sealed(path, data, tmp_path)
    with served(bundle, trust, tmp_path) as url, Client(url) as client:
        answer = client.predict(x)
        assert answer.probabilities is not None
        assert np.abs(answer.probabilities - expected).max() < TOLERANCE
        assert answer.labels == labels
        assert answer.proved
        done = as_json("predict", url, str(data), "--limit", "200")
        assert done["accuracy"] == pytest.approx((expected[:200].argmax(axis=1) == y[:200]).mean())
        whole = x[:1].copy()
        whole[np.isnan(whole)] = 0
        whole[0, 0] = np.inf
        with pytest.raises(InputError):
            client.predict(whole)
        if not np.isnan(x).any():
            whole[0, 0] = np.nan
            with pytest.raises(InputError):  # no value was missing in the data
                client.predict(whole)


def test_missing_values_are_allowed_where_the_data_have_them(tmp_path: Path) -> None:
    path, x, _ = xgboost(tmp_path)
    x = x.astype(np.float32)
    x[:, 3] = np.nan_to_num(x[:, 3])
    _, y, labels = letters()
    bundle, trust = sealed(path, save(tmp_path / "data.npz", x=x, y=y, labels=np.array(labels)), tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    assert manifest["inputs"][0]["may_be_missing"] == [k != 3 for k in range(16)]
    holes = np.nan_to_num(x[:2])
    with served(bundle, trust, tmp_path) as url, Client(url) as client:
        holes[0, 2] = np.nan
        client.predict(holes)
        holes[0, 3] = np.nan
        with pytest.raises(InputError, match="NaN"):
            client.predict(holes)


@pytest.mark.parametrize("train", [xgboost, lightgbm], ids=lambda f: f.__name__)
def test_boosted_models_are_hardened_by_the_same_command(train: Callable[[Path], Trained], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path, x, expected = train(tmp_path)
    x, (_, y, labels) = x.astype(np.float32), letters()
    data = save(tmp_path / "data.npz", x=x, y=y, labels=np.array(labels))
    out, key = tmp_path / "hardened", str(tmp_path / "owner.key")
    found = as_json(
        "harden",
        str(path),
        "--data",
        str(data),
        "--calibration",
        str(data),
        "--on-ood",
        "uncertain",
        "--no-detectors",
        "-o",
        str(out),
    )
    assert found["hardened"]["labels"] == list(labels)
    assert set(found["hardened"]["data_sha256"]) == {"training", "calibration", "model file"}
    assert run("keygen", "-o", str(tmp_path / "owner")).exit_code == 0
    assert run("seal", str(out), "--key", key, "-o", str(tmp_path / "bundle")).exit_code == 0
    with served(tmp_path / "bundle", tmp_path / "owner.pub", tmp_path) as url, Client(url) as client:
        answer = client.predict(x)
    assert answer.probabilities is not None
    sure = ~answer.uncertain
    assert sure.mean() > 0.9
    assert np.abs(answer.probabilities[sure] - expected[sure]).max() < TOLERANCE


def test_regression_is_not_hardened(tmp_path: Path) -> None:
    diabetes = datasets.load("diabetes")
    model = pytest.importorskip("xgboost").XGBRegressor(n_estimators=3).fit(diabetes.x, diabetes.y)
    model.save_model(tmp_path / "model.json")
    data = save(tmp_path / "data.npz", x=diabetes.x, y=np.zeros(len(diabetes.x), dtype=np.int64))
    done = run("harden", str(tmp_path / "model.json"), "--data", str(data), "-o", str(tmp_path / "out"))
    assert "sealed as it is" in str(done.exception)
