"""scikit-learn: sealed models answer like the originals; forged files do nothing."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerKey
from garrison.errors import ModelFileError, UnsupportedModelError
from garrison.runtime.runner import Runner
from garrison.sealing.formats import read_source
from garrison.sealing.formats.sklearn import convert
from garrison.sealing.inputs import rows_from_arrays
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_source
from garrison.types import Array, Task

pytest.importorskip("skl2onnx")
skops_io = pytest.importorskip("skops.io")

from sklearn.datasets import load_diabetes, load_digits  # noqa: E402
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor  # noqa: E402
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer, StandardScaler  # noqa: E402
from sklearn.svm import SVC, LinearSVC  # noqa: E402
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor  # noqa: E402

ROWS = 300


def digits(*, two: bool = False) -> tuple[Array, Array]:
    x, y = load_digits(return_X_y=True)
    return x[:ROWS], (y[:ROWS] > 4).astype(int) if two else y[:ROWS]


def diabetes() -> tuple[Array, Array]:
    x, y = load_diabetes(return_X_y=True)
    return x[:ROWS], y[:ROWS]


def fit(estimator: Any, x: Array, y: Array) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator.fit(x, y)


def through_a_file(estimator: Any, folder: Path) -> Path:
    path = folder / "model.skops"
    skops_io.dump(estimator, path)
    return path


CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "logistic regression": lambda: LogisticRegression(max_iter=300),
    "random forest": lambda: RandomForestClassifier(8, random_state=0),
    "decision tree": lambda: DecisionTreeClassifier(random_state=0),
    "multilayer perceptron": lambda: MLPClassifier((16,), max_iter=30, random_state=0),
    "pipeline": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
}
SCORERS: dict[str, Callable[[], Any]] = {
    "linear svc": lambda: LinearSVC(random_state=0),
    "ridge classifier": RidgeClassifier,
    "svc": SVC,
    "pipeline": lambda: make_pipeline(StandardScaler(), LinearSVC(random_state=0)),
}
REGRESSORS: dict[str, Callable[[], Any]] = {
    "ridge": Ridge,
    "random forest": lambda: RandomForestRegressor(8, random_state=0),
    "decision tree": lambda: DecisionTreeRegressor(random_state=0),
    "pipeline": lambda: make_pipeline(StandardScaler(), Ridge()),
}


def served(path: Path, folder: Path, x: Array, y: Array, *, double: bool = False) -> tuple[Any, Array, Task]:
    """Through the file, the seal, verification and the runtime."""
    owner = OwnerKey.generate()
    draft = draft_from_source(
        read_source(path, double=double), rows_from_arrays({"x": x}, y), SealOptions(name="model")
    )
    manifest = seal(draft, owner, folder / "b")
    assert manifest.guarded is not None, manifest.numpy_because
    bundle = verify(folder / "b", [owner.public])
    dtype = np.float64 if double else np.float32
    answers = np.concatenate(
        [Runner(bundle).run({"x": x[i : i + n].astype(dtype)}).values for i, n in ((0, 1), (1, 2), (3, ROWS))]
    )
    return manifest, answers, draft.task


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_sealed_classifier_gives_the_original_probabilities(kind: str, tmp_path: Path) -> None:
    x, y = digits()
    estimator = fit(CLASSIFIERS[kind](), x, y)
    manifest, answers, task = served(through_a_file(estimator, tmp_path), tmp_path, x, y)
    assert task is Task.CLASSIFICATION
    assert manifest.labels == tuple(str(c) for c in range(10))
    assert manifest.provenance.source_format == "scikit-learn"
    assert manifest.provenance.metrics["accuracy"] == pytest.approx(estimator.score(x, y), abs=0.01)
    off = np.abs(answers - estimator.predict_proba(x)).max(axis=1) > 1e-4
    assert off.mean() <= (0.01 if "forest" in kind or "tree" in kind else 0)


@pytest.mark.parametrize("two", [False, True], ids=["ten classes", "two classes"])
@pytest.mark.parametrize("kind", SCORERS)
def test_a_sealed_scorer_gives_the_original_decision_values(kind: str, two: bool, tmp_path: Path) -> None:
    x, y = digits(two=two)
    estimator = fit(SCORERS[kind](), x, y)
    manifest, answers, task = served(through_a_file(estimator, tmp_path), tmp_path, x, y)
    expected = estimator.decision_function(x)
    expected = np.stack([-expected, expected], axis=1) if two else expected
    assert task is Task.SCORES
    assert len(manifest.labels) == manifest.outputs == expected.shape[1]
    assert np.allclose(answers, expected, atol=1e-3)
    assert (answers.argmax(axis=1) == estimator.predict(x)).mean() > 0.99


@pytest.mark.parametrize("kind", REGRESSORS)
def test_a_sealed_regressor_gives_the_original_values(kind: str, tmp_path: Path) -> None:
    x, y = diabetes()
    estimator = fit(REGRESSORS[kind](), x, y)
    manifest, answers, task = served(through_a_file(estimator, tmp_path), tmp_path, x, y)
    assert (task, manifest.labels) == (Task.REGRESSION, ())
    off = np.abs(answers[:, 0] - estimator.predict(x)) > 1e-2
    assert off.mean() <= (0.01 if "forest" in kind or "tree" in kind else 0)


def test_double_precision_is_kept_to_the_end(tmp_path: Path) -> None:
    x, y = digits()
    estimator = fit(LogisticRegression(max_iter=300), x, y)
    manifest, answers, _ = served(through_a_file(estimator, tmp_path), tmp_path, x, y, double=True)
    assert (manifest.output_datatype, manifest.inputs[0].datatype) == ("FP64", "FP64")
    assert np.abs(answers - estimator.predict_proba(x)).max() < 1e-12


def test_a_tree_ensemble_is_one_chunk_and_a_perceptron_is_not(tmp_path: Path) -> None:
    x, y = digits()
    forest = fit(RandomForestClassifier(8, random_state=0), x, y)
    manifest, _, _ = served(through_a_file(forest, tmp_path), tmp_path, x, y)
    assert manifest.graph.chunks == ()
    perceptron = fit(MLPClassifier((16,), max_iter=5, random_state=0), x, y)
    draft = draft_from_source(convert(perceptron), rows_from_arrays({"x": x}, y), SealOptions(name="model"))
    assert seal(draft, OwnerKey.generate(), tmp_path / "c").graph.chunks


def test_class_names_become_labels() -> None:
    x, y = digits(two=True)
    estimator = fit(LogisticRegression(max_iter=50), x, np.array(["no", "yes"])[y])
    draft = draft_from_source(convert(estimator), rows_from_arrays({"x": x}), SealOptions(name="model"))
    assert draft.labels == ("no", "yes")


@pytest.mark.parametrize(
    "estimator",
    [LogisticRegression(), StandardScaler(), object(), "model"],
    ids=["unfitted", "scaler", "object", "text"],
)
def test_what_is_no_fitted_model_is_told(estimator: Any) -> None:
    with pytest.raises(UnsupportedModelError):
        convert(estimator)
    with pytest.raises(UnsupportedModelError):
        convert(fit(StandardScaler(), *digits()))


# Files that want something


def own_function(x: Any) -> Any:
    return x


def test_a_type_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    x, y = digits()
    estimator = fit(make_pipeline(FunctionTransformer(own_function), LogisticRegression(max_iter=50)), x, y)
    with pytest.raises(UnsupportedModelError, match="own_function"):
        read_source(through_a_file(estimator, tmp_path))


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(entries["schema.json"])
    change(schema)
    entries["schema.json"] = json.dumps(schema).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_a_file_that_asks_for_os_system_is_refused(tmp_path: Path) -> None:
    path = through_a_file(fit(Ridge(), *diabetes()), tmp_path)
    read_source(path)

    def change(schema: dict[str, Any]) -> None:
        schema["__class__"], schema["__module__"] = "system", "os"

    with pytest.raises(UnsupportedModelError, match=r"os\.system"):
        read_source(rewritten(path, change))


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = through_a_file(fit(Ridge(), *diabetes()), tmp_path)
    with pytest.raises((ModelFileError, UnsupportedModelError), match=r"model\.skops"):
        read_source(rewritten(path, lambda schema: schema.pop("content")))


@pytest.mark.parametrize("field", ["left_child", "right_child", "feature"])
def test_a_forged_tree_is_refused_before_native_code_walks_it(field: str) -> None:
    x, y = digits()
    tree = fit(DecisionTreeClassifier(max_depth=3, random_state=0), x, y)
    convert(tree)
    state = tree.tree_.__getstate__()
    state["nodes"] = state["nodes"].copy()
    state["nodes"][field][0] = 1_000_000
    tree.tree_.__setstate__(state)
    with pytest.raises(UnsupportedModelError, match="forged"):
        convert(tree)
    forest = fit(RandomForestClassifier(2, max_depth=3, random_state=0), x, y)
    forest.estimators_[1].tree_ = tree.tree_
    with pytest.raises(UnsupportedModelError, match="forged"):
        convert(make_pipeline(forest))
