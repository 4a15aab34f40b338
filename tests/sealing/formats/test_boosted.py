"""XGBoost and LightGBM: sealed models answer like the originals, on every row; damaged files are told."""

from __future__ import annotations

import json
import random
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from garrison import datasets
from garrison.errors import GarrisonError, ModelFileError, UnsupportedModelError
from garrison.hardening.scoring import open_session
from garrison.sealing.formats import read_source
from garrison.types import Array

xgboost = pytest.importorskip("xgboost")
lightgbm = pytest.importorskip("lightgbm")

TOLERANCE = 5e-6
"""Relative to the largest answer: sums of single-precision numbers, in another order."""
SMALL: dict[str, Any] = {"n_estimators": 20}
QUIET: dict[str, Any] = {"n_estimators": 20, "verbosity": -1, "n_jobs": 1}  # by itself it takes all cores, and spins


def missing(x: Array) -> Array:
    holes = x.copy()
    holes[np.random.default_rng(0).random(x.shape) < 0.1] = np.nan
    return holes


def german() -> tuple[Array, Array, list[str]]:
    found = datasets.load("german-credit")
    assert found.y is not None
    return found.x, found.y, ["c" if name in found.categories else "q" for name in found.features]


def diabetes() -> tuple[Array, Array]:
    found = datasets.load("diabetes")
    assert found.y is not None
    return found.x, np.abs(found.y) + 1


def fit(model: Any, x: Array, y: Array | None, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(x, y, **more)


def graph_answers(path: Path, x: Array, *, double: bool = False) -> Array:
    source = read_source(path, double=double)
    session = open_session(source.model.SerializeToString())
    found: Array = session.run(None, {"x": x.astype(np.float64 if double else np.float32)})[0]
    return found


def check(found: Array, expected: Array) -> None:
    """All rows, not nearly all."""
    expected = np.asarray(expected).reshape(len(found), -1)
    expected = np.hstack([1 - expected, expected]) if expected.shape[1] + 1 == found.shape[1] == 2 else expected
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())


def saved(model: Any, folder: Path, suffix: str) -> Path:
    path = folder / f"model{suffix}"
    model.save_model(path)
    return path


# XGBoost --------------------------------------------------------------------------------------------------------------


def classifiers() -> dict[str, Callable[[], Any]]:
    kinds = german()[2]
    return {
        "plain": lambda: xgboost.XGBClassifier(**SMALL),
        "categories": lambda: xgboost.XGBClassifier(
            **SMALL, enable_categorical=True, feature_types=kinds, max_cat_to_onehot=4
        ),
        "dart": lambda: xgboost.XGBClassifier(**SMALL, booster="dart", rate_drop=0.3),
        "forest": lambda: xgboost.XGBRFClassifier(**SMALL),
        "margins": lambda: xgboost.XGBClassifier(**SMALL, objective="binary:logitraw"),
    }


@pytest.mark.parametrize("suffix", [".json", ".ubj"])
@pytest.mark.parametrize("holes", [False, True], ids=["whole", "with missing values"])
@pytest.mark.parametrize("kind", ["plain", "categories", "dart", "forest"])
def test_xgboost_two_classes(kind: str, holes: bool, suffix: str, tmp_path: Path) -> None:
    x, y, _ = german()
    x = missing(x) if holes else x
    model = fit(classifiers()[kind](), x, y)
    check(graph_answers(saved(model, tmp_path, suffix), x), model.predict_proba(x))


def test_xgboost_many_classes(tmp_path: Path) -> None:
    digits = datasets.load("digits")
    model = fit(xgboost.XGBClassifier(**SMALL), digits.x, digits.y)
    check(graph_answers(saved(model, tmp_path, ".ubj"), digits.x), model.predict_proba(digits.x))
    matrix = xgboost.DMatrix(digits.x, label=digits.y)
    booster = xgboost.train({"objective": "multi:softmax", "num_class": 10}, matrix, 3)
    booster.save_model(tmp_path / "booster.json")
    found = graph_answers(tmp_path / "booster.json", digits.x)
    assert (found.argmax(axis=1) == booster.predict(matrix)).all()
    assert np.allclose(found.sum(axis=1), 1)


@pytest.mark.parametrize(
    "objective",
    ["reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror", "count:poisson", "reg:gamma", "reg:tweedie", "survival:cox"],
)  # fmt: skip
def test_xgboost_regression(objective: str, tmp_path: Path) -> None:
    x, y = diabetes()
    model = fit(xgboost.XGBRegressor(**SMALL, objective=objective), x, y)
    path = saved(model, tmp_path, ".json")
    check(graph_answers(path, x), model.predict(x))
    assert read_source(path).declared == "values"


def test_xgboost_several_targets_are_scores(tmp_path: Path) -> None:
    x, y = diabetes()
    model = fit(xgboost.XGBRegressor(**SMALL), x, np.stack([y, -y], axis=1))
    path = saved(model, tmp_path, ".json")
    check(graph_answers(path, x), model.predict(x))
    assert read_source(path).declared == "scores"


def test_xgboost_that_stopped_early_answers_as_its_wrapper_does(tmp_path: Path) -> None:
    x, y, _ = german()
    model = xgboost.XGBClassifier(n_estimators=100, early_stopping_rounds=3, learning_rate=0.5)
    fit(model, x, y, eval_set=[(x[:100], 1 - y[:100])], verbose=False)
    found = graph_answers(saved(model, tmp_path, ".json"), x)
    check(found, model.predict_proba(x))
    everything = model.get_booster().predict(xgboost.DMatrix(x))
    assert np.abs(found[:, 1] - everything).max() > 0.01, "control: the trees after the best round would change it"


def test_xgboost_unknown_categories(tmp_path: Path) -> None:
    x, y, kinds = german()
    model = fit(classifiers()["categories"](), x, y)
    odd = [-5, -1, -0.5, 0.5, 1.5, 99, 1e6, np.nan]
    columns = [i for i, kind in enumerate(kinds) if kind == "c"]
    x = x.copy()
    x[:, columns] = np.random.default_rng(1).choice(odd, size=(len(x), len(columns)))
    check(graph_answers(saved(model, tmp_path, ".json"), x), model.predict_proba(x))


def test_xgboost_that_is_not_converted(tmp_path: Path) -> None:
    x, y = diabetes()
    linear = fit(xgboost.XGBRegressor(booster="gblinear", n_estimators=3), x, y)
    vectors = fit(xgboost.XGBRegressor(**SMALL, multi_strategy="multi_output_tree"), x, np.stack([y, -y], axis=1))
    hinge = fit(xgboost.XGBClassifier(**SMALL, objective="binary:hinge"), *german()[:2])
    for model, words in ((linear, "gblinear"), (vectors, "vector|contradict|not a model file"), (hinge, "hinge")):
        with pytest.raises((UnsupportedModelError, ModelFileError), match=words):
            read_source(saved(model, tmp_path, ".json"))


# LightGBM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize("holes", [False, True], ids=["whole", "with missing values"])
@pytest.mark.parametrize("kind", ["plain", "categories", "zeros are missing", "forest", "dart", "steep"])
def test_lightgbm_two_classes(kind: str, holes: bool, double: bool, tmp_path: Path) -> None:
    x, y, kinds = german()
    x = missing(x) if holes else x
    settings: dict[str, dict[str, Any]] = {
        "zeros are missing": {"zero_as_missing": True},
        "forest": {"boosting_type": "rf", "bagging_freq": 1, "bagging_fraction": 0.7},
        "dart": {"boosting_type": "dart"},
        "steep": {"sigmoid": 2.5},
    }
    options = settings.get(kind, {})
    columns = [i for i, name in enumerate(kinds) if name == "c"] if kind == "categories" else "auto"
    model = fit(lightgbm.LGBMClassifier(**QUIET, **options), x, y, categorical_feature=columns)
    path = saved(model.booster_, tmp_path, ".txt")
    check(graph_answers(path, x, double=double), model.booster_.predict(x))


def test_lightgbm_many_classes(tmp_path: Path) -> None:
    digits, few = datasets.load("digits"), QUIET | {"n_estimators": 4, "num_leaves": 7}
    model = fit(lightgbm.LGBMClassifier(**few), digits.x, digits.y)
    check(graph_answers(saved(model.booster_, tmp_path, ".txt"), digits.x), model.booster_.predict(digits.x))
    model = fit(lightgbm.LGBMClassifier(**few, objective="multiclassova"), digits.x, digits.y)
    path = saved(model.booster_, tmp_path, ".txt")
    check(graph_answers(path, digits.x), model.booster_.predict(digits.x))
    assert read_source(path).declared == "scores", "one against all: its answers do not sum to 1"


@pytest.mark.parametrize(
    "objective", ["regression", "regression_l1", "huber", "poisson", "gamma", "tweedie", "quantile"]
)
def test_lightgbm_regression(objective: str, tmp_path: Path) -> None:
    x, y = diabetes()
    model = fit(lightgbm.LGBMRegressor(**QUIET, objective=objective), x, y)
    check(graph_answers(saved(model.booster_, tmp_path, ".txt"), x), model.booster_.predict(x.astype(np.float32)))
    root = fit(lightgbm.LGBMRegressor(**QUIET, reg_sqrt=True), x, y)
    check(graph_answers(saved(root.booster_, tmp_path, ".txt"), x, double=True), root.booster_.predict(x))


def test_lightgbm_missing_where_training_had_none_and_unknown_categories(tmp_path: Path) -> None:
    x, y, kinds = german()
    columns = [i for i, name in enumerate(kinds) if name == "c"]
    model = fit(lightgbm.LGBMClassifier(**QUIET), x, y, categorical_feature=columns)
    odd = missing(x)
    values = [-5, -1, -0.5, 0.5, 0.999, 1.5, 99, 1e6, 1e9, np.nan]
    odd[:, columns] = np.random.default_rng(1).choice(values, size=(len(x), len(columns)))
    path = saved(model.booster_, tmp_path, ".txt")
    check(graph_answers(path, odd), model.booster_.predict(odd))
    check(graph_answers(path, odd, double=True), model.booster_.predict(odd))


def test_lightgbm_that_is_not_converted(tmp_path: Path) -> None:
    x, y = diabetes()
    linear = fit(lightgbm.LGBMRegressor(**QUIET, linear_tree=True), x, y)
    with pytest.raises(UnsupportedModelError, match="linear"):
        read_source(saved(linear.booster_, tmp_path, ".txt"))


def test_thresholds_are_rounded_so_that_no_row_changes_its_side(tmp_path: Path) -> None:
    """LightGBM compares in double precision. Rows just above, at and below each of its thresholds tell a rounding to the nearest."""
    x, y = diabetes()
    model = fit(lightgbm.LGBMRegressor(**QUIET), x, y)
    path = saved(model.booster_, tmp_path, ".txt")
    lines = [line for line in path.read_text().splitlines() if line.startswith("threshold=")]
    thresholds = np.unique([float(word) for line in lines for word in line.split("=")[1].split()])
    near = thresholds.astype(np.float32)
    beside = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
    edges = np.concatenate(beside)
    rows = np.repeat(edges[:, np.newaxis], x.shape[1], axis=1)
    check(graph_answers(path, rows), model.booster_.predict(rows.astype(np.float64)))
    wrong = (near.astype(np.float64) <= thresholds) != (near <= near)
    assert wrong.any(), "control: rounded to the nearest, some of these rows would go the other way"


# Files that want something ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("boosted")
    x, y, kinds = german()
    model = fit(classifiers()["categories"](), x, y)
    columns = [i for i, name in enumerate(kinds) if name == "c"]
    light = fit(lightgbm.LGBMClassifier(n_estimators=3, verbosity=-1, n_jobs=1), x, y, categorical_feature=columns)
    found = {suffix: saved(model, folder, suffix).read_bytes() for suffix in (".json", ".ubj")}
    return found | {".txt": saved(light.booster_, folder, ".txt").read_bytes()}


def changed(files: dict[str, bytes], folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    model = json.loads(files[".json"])
    change(model)
    path = folder / "changed.json"
    path.write_text(json.dumps(model))
    return path


def first_tree(model: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = model["learner"]["gradient_booster"]["model"]["trees"][0]
    return tree


@pytest.mark.parametrize(
    "change",
    [
        lambda m: first_tree(m)["left_children"].__setitem__(0, 0),
        lambda m: first_tree(m)["left_children"].__setitem__(1, 1_000_000),
        lambda m: first_tree(m)["left_children"].__setitem__(1, -7),
        lambda m: first_tree(m)["right_children"].__setitem__(0, first_tree(m)["left_children"][0]),
        lambda m: first_tree(m)["right_children"].__setitem__(2, 0),
        lambda m: first_tree(m)["split_indices"].__setitem__(0, 20),
        lambda m: first_tree(m)["split_indices"].__setitem__(0, -1),
        lambda m: first_tree(m)["split_conditions"].pop(),
        lambda m: first_tree(m)["categories_nodes"].__setitem__(0, 9_999),
        lambda m: first_tree(m)["categories_sizes"].__setitem__(0, 10**9),
        lambda m: first_tree(m)["categories_segments"].__setitem__(0, -5),
        lambda m: first_tree(m)["categories"].__setitem__(0, -5),
        lambda m: first_tree(m)["categories"].__setitem__(0, 10**9),
        lambda m: first_tree(m)["categories_nodes"].pop(),
        lambda m: m["learner"]["gradient_booster"]["model"]["tree_info"].__setitem__(0, 5),
        lambda m: m["learner"]["gradient_booster"]["model"]["tree_info"].pop(),
        lambda m: m["learner"]["gradient_booster"]["model"].update(trees=[], tree_info=[]),
        lambda m: m["learner"]["learner_model_param"].update(num_feature="many"),
        lambda m: m["learner"]["learner_model_param"].update(base_score="[0.1,0.2,0.3]"),
        lambda m: m["learner"]["objective"].update(name="multi:softprob"),
        lambda m: m["learner"]["objective"].update(name="my:own"),
        lambda m: m["learner"].pop("objective"),
        lambda m: m.update(version=[99, 0, 0]),
    ],
)
def test_a_forged_xgboost_file_is_refused(
    change: Callable[[dict[str, Any]], None], files: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises((ModelFileError, UnsupportedModelError), match=r"changed\.json"):
        read_source(changed(files, tmp_path, change))
    assert read_source(changed(files, tmp_path, lambda _: None)).format == "xgboost", "control"


@pytest.mark.parametrize(
    ("old", "new"),
    [("version=v4", "version=v9"), ("objective=binary", "objective=mine"), ("num_cat=", "num_cat=9"), ("left_child=", "left_child=0 "),
     ("left_child=1", "left_child=0"), ("right_child=", "right_child=-99 "), ("leaf_value=", "leaf_value=nan "), ("Tree=0", "Tree:0"),
     ("end of trees", "end"), ("cat_threshold=", "cat_threshold=-1 "), ("max_feature_idx=19", "max_feature_idx=2"),
     ("num_leaves=", "num_leaves=1"), ("num_tree_per_iteration=1", "num_tree_per_iteration=2"), ("version=v4", "version=v4\nversion=v4"),
     ("threshold=", "threshold=x"), ("decision_type=", "decision_type=9999999999999999999999 ")],
)  # fmt: skip
def test_a_forged_lightgbm_file_is_refused(old: str, new: str, files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "changed.txt"
    text = files[".txt"].decode()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises((ModelFileError, UnsupportedModelError), match=r"changed\.txt"):
        read_source(path)


@pytest.mark.parametrize("suffix", [".json", ".ubj", ".txt"])
def test_damaged_files_end_in_a_typed_error(suffix: str, files: dict[str, bytes], tmp_path: Path) -> None:
    rng, data = random.Random(5), files[suffix]
    path = tmp_path / f"damaged{suffix}"
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        try:
            read_source(path)
        except GarrisonError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[$", b"[$i", b"[$i#", b"[#L" + struct.pack(">q", 2**62), b"[$D#L" + struct.pack(">q", -1), b"[" * 100_000,
     b"{i\x01aZi\x01aZ}", b"SL" + struct.pack(">q", 2**40), b"{i\x02\xff\xfeZ}", b"H", b"[#Z", b"N" * 10],
    ids=range(14),
)  # fmt: skip
def test_rubbish_is_no_ubjson(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.ubj"
    path.write_bytes(data)
    with pytest.raises(GarrisonError, match=r"model\.ubj"):
        read_source(path)
