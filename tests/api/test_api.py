"""The commands as functions: the whole way, on real data and with models in memory."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving import Bundles

import garrison
from garrison import api, datasets
from garrison.errors import (
    BudgetExhaustedError,
    CalibrationError,
    ChangedFileError,
    ConfigError,
    KeyFileError,
    NoTrustedKeyError,
    TargetExistsError,
    UnsupportedModelError,
    UntrustedKeyError,
)
from garrison.types import Array

FUNCTIONS = ["harden", "keygen", "predict", "run_audit", "seal", "serve", "verify"]
ROOT = Path(__file__).parents[2]


def wine() -> tuple[Array, Array]:
    found = datasets.load("wine")
    assert found.y is not None
    return found.x.astype(np.float32), found.y


def fitted(model: Any, x: Array, y: Array) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(x, y)


def estimator() -> Any:
    return fitted(pytest.importorskip("sklearn.linear_model").LogisticRegression(max_iter=500), *wine())


def booster() -> Any:
    return fitted(pytest.importorskip("xgboost").XGBClassifier(n_estimators=5), *wine())


def plain_booster() -> Any:
    return booster().get_booster()


def light() -> Any:
    model = pytest.importorskip("lightgbm").LGBMClassifier(n_estimators=5, verbosity=-1, n_jobs=1)
    return fitted(model, *wine())


def module() -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.BatchNorm1d(13), torch.nn.Linear(13, 3), torch.nn.Softmax(1))


def own_answers(model: Any, x: Array) -> Array:
    if hasattr(model, "predict_proba"):
        found: Array = model.predict_proba(x)
        return found
    if hasattr(model, "save_model"):
        return np.asarray(model.predict(pytest.importorskip("xgboost").DMatrix(x)))
    torch = pytest.importorskip("torch")
    model.eval()
    with torch.no_grad():
        return np.asarray(model(torch.tensor(x)).numpy())


def test_the_public_names_are_listed_and_there() -> None:
    assert garrison.__all__ == sorted(garrison.__all__)
    assert sorted(api.__all__) == FUNCTIONS == sorted(set(garrison.__all__) - {"__version__"})
    for name in FUNCTIONS:
        assert getattr(garrison, name) is getattr(api, name)
        assert getattr(garrison, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        _ = garrison.nothing


def test_importing_garrison_loads_next_to_nothing() -> None:
    code = (
        "import sys, garrison, garrison.api; print(len(sys.modules), 'numpy' in sys.modules, 'msgspec' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1:] == ["False", "False"]


@pytest.mark.parametrize("make", [estimator, booster, plain_booster, light, module], ids=lambda f: f.__name__)
def test_models_in_memory_go_the_whole_way(make: Callable[[], Any], tmp_path: Path) -> None:
    model, (x, y) = make(), wine()
    keys = garrison.keygen(tmp_path / "owner")
    manifest = garrison.seal(model, tmp_path / "wine", key=keys.private, data=(x, y), labels=["a", "b", "c"])
    assert (manifest.name, manifest.version) == ("wine", 1)
    assert garrison.verify(tmp_path / "wine", keys.public).signer == keys.fingerprint
    with garrison.serve(tmp_path / "wine", trust=keys.public, isolation="none", state=tmp_path / "state") as server:
        answer = garrison.predict(server.url, x)
        assert answer.probabilities is not None
        assert np.abs(answer.probabilities - own_answers(model, x)).max() < 1e-5
        with server.client() as client:
            assert client.metadata().name == "wine"
    with pytest.raises(garrison.errors.UnavailableError):
        garrison.predict(server.url, x, attempts=1)


def test_harden_seal_serve_with_budget_and_release(tmp_path: Path) -> None:
    x, y = wine()
    keys = garrison.keygen(tmp_path / "owner", passphrase="secret words")
    hardened = garrison.harden(estimator(), (x, y), tmp_path / "H", calibration={"x": x, "y": y}, on_ood="uncertain")
    assert [spec.name for spec in hardened.guard][-2:] == ["reject-option", "release"]
    with pytest.raises(KeyFileError):
        garrison.seal(tmp_path / "H", tmp_path / "B", key=keys.private)
    manifest = garrison.seal(
        tmp_path / "H",
        tmp_path / "B",
        key=keys.private,
        passphrase="secret words",
        budget="100/day",
        release="rounded",
        decimals=2,
    )
    budget = {spec.name: spec.parameters for spec in manifest.guard}["budget"]
    assert (budget["rows"], budget["period"]) == (100, "day")
    with garrison.serve(tmp_path / "B", trust=[keys.public], isolation="none", state=tmp_path / "s") as server:
        answer = garrison.predict(server.url, x[:90])
        assert answer.probabilities is not None
        assert np.allclose(answer.probabilities * 100, np.round(answer.probabilities * 100), atol=1e-4)
        with pytest.raises(BudgetExhaustedError):
            garrison.predict(server.url, x[:11])
    tighter = {"release": {"mode": "labels"}}
    with garrison.serve(
        tmp_path / "B", trust=keys.public, isolation="none", state=tmp_path / "t", guard=tighter
    ) as server:
        assert set(garrison.predict(server.url, x[:3]).outputs) == {"classes"}


def test_a_service_with_its_model_in_a_process_of_its_own(bundles: Bundles, tmp_path: Path) -> None:
    trust, path = bundles.folder / "owner.pub", bundles.sealed["plain"].path
    with garrison.serve(path, trust=trust, state=tmp_path) as server:
        with server.client() as client:
            found = client.metadata()
        assert found.name == "plain"
        assert server.url in repr(server)
    server.close()  # once more does no harm


def test_mistakes_are_typed_errors(bundles: Bundles, tmp_path: Path) -> None:
    x, y = wine()
    trust, path = bundles.folder / "owner.pub", bundles.sealed["plain"].path
    keys = garrison.keygen(tmp_path / "owner")
    with pytest.raises(KeyFileError, match="exists"):
        garrison.keygen(tmp_path / "owner")
    with pytest.raises(UntrustedKeyError):
        garrison.verify(path, keys.public)
    for nobody in (None, ()):
        with pytest.raises(NoTrustedKeyError):
            garrison.verify(path, nobody)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown setting 'isolatoin'"):
        garrison.serve(path, trust=trust, isolatoin="none")
    with pytest.raises(ConfigError, match="require_isolation"):
        garrison.serve(path, trust=trust, require_isolation="much")
    with pytest.raises(ConfigError, match="unknown option 'benign_los'"):
        garrison.harden(estimator(), (x, y), tmp_path / "H", benign_los=0.1)
    with pytest.raises(ConfigError, match="data is needed"):
        garrison.seal(estimator(), tmp_path / "B", key=keys.private)
    with pytest.raises(ConfigError, match="budget"):
        garrison.seal(estimator(), tmp_path / "B", key=keys.private, data=x, budget="many")
    with pytest.raises(ConfigError, match="release"):
        garrison.seal(estimator(), tmp_path / "B", key=keys.private, data=x, release="some")
    with pytest.raises(UnsupportedModelError, match="found object"):
        garrison.seal(object(), tmp_path / "B", key=keys.private, data=x)
    garrison.seal(estimator(), tmp_path / "B", key=keys.private, data=x)
    with pytest.raises(TargetExistsError):
        garrison.seal(estimator(), tmp_path / "B", key=keys.private, data=x)
    graph = tmp_path / "B" / "graph.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(ChangedFileError):
        garrison.verify(tmp_path / "B", keys.public)


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": ()},
        {"data": 3},
        {"data": [[1.0], [1.0, 2.0]]},
        {"data": {}},
        {"data": "y too short"},
        {"budget": 0},
        {"release": "rounded", "decimals": 99},
        {"release": "rounded", "decimals": "2"},
        {"release": "top-k", "k": -1},
        {"version": "new"},
        {"labels": "ab"},
    ],
    ids=str,
)
def test_arguments_that_cannot_be_used(wrong: dict[str, Any], tmp_path: Path) -> None:
    x, y = wine()
    data: Any = wrong.get("data", x)
    keys = garrison.keygen(tmp_path / "owner")
    with pytest.raises((CalibrationError, ConfigError)):
        garrison.seal(
            estimator(),
            tmp_path / "B",
            key=keys.private,
            **wrong | {"data": (x, y[:5]) if isinstance(data, str) else data},
        )
    assert not (tmp_path / "B").exists()


def test_lists_are_rows_and_whole_numbers_budgets(tmp_path: Path) -> None:
    x, _ = wine()
    keys = garrison.keygen(tmp_path / "owner")
    manifest = garrison.seal(estimator(), tmp_path / "B", key=keys.private, data=x.tolist(), budget=50)
    assert next(spec for spec in manifest.guard if spec.name == "budget").parameters["rows"] == 50


def test_what_would_be_passed_over_is_told(bundles: Bundles, tmp_path: Path) -> None:
    path, trust = bundles.sealed["plain"].path, bundles.folder / "owner.pub"
    with pytest.raises(ConfigError, match="workers"):
        garrison.serve(path, trust=trust, workers=2)
    wrong: Any = {"request_rows": 1}
    with pytest.raises(ConfigError, match="limits"):
        garrison.serve(path, trust=trust, limits=wrong)
    with pytest.raises(ConfigError, match="empty"):
        garrison.keygen(tmp_path / "owner", passphrase="")
    assert not (tmp_path / "owner.key").exists()


def test_every_function_is_documented() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    rows = re.findall(r"^\| `(\w+)\(", page, re.MULTILINE)
    assert sorted(rows) == FUNCTIONS
