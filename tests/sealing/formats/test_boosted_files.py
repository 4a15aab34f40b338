"""Files that would crash the libraries' own loaders: these get a text of ours, which says the same. None of these tests is taken away."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.sealing.formats.test_boosted import diabetes, fit, german, missing, saved

from garrison import datasets
from garrison.errors import GarrisonError, ModelFileError
from garrison.sealing.formats import read_source
from garrison.types import Array

xgboost = pytest.importorskip("xgboost")
lightgbm = pytest.importorskip("lightgbm")

FEW: dict[str, Any] = {"n_estimators": 5, "n_jobs": 1}
QUIET: dict[str, Any] = FEW | {"verbosity": -1}


def originals(path: Path, x: Array) -> Array:
    reference = read_source(path).reference
    assert reference is not None
    return reference({"x": x})


APART = multiprocessing.get_context("forkserver")
"""Processes made from one that has computed nothing: OpenMP hangs in the fork of one that has."""
APART.set_forkserver_preload(["garrison.sealing.formats.lightgbm", "garrison.sealing.formats.xgboost"])
SECONDS = 60.0


def survives(path: Path, rows: Array) -> bool:
    """Whether a process that reads a file and asks the library lives, and is told what is wrong by a typed error if anything."""
    process = APART.Process(target=_read_and_ask, args=(path, rows))
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode == 0


def _read_and_ask(path: Path, rows: Array) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    with contextlib.suppress(GarrisonError):
        originals(path, rows)


@pytest.mark.parametrize("kind", ["classes", "ova", "categories", "root", "quantile", "forest"])
def test_lightgbm_answers_the_same_from_the_text_that_it_is_given(kind: str, tmp_path: Path) -> None:
    x, y, kinds = german()
    columns = [i for i, name in enumerate(kinds) if name == "c"]
    digits = datasets.load("digits")
    made: dict[str, Callable[[], tuple[Any, Array]]] = {
        "classes": lambda: (fit(lightgbm.LGBMClassifier(**QUIET), digits.x, digits.y), digits.x),
        "ova": lambda: (
            fit(lightgbm.LGBMClassifier(**QUIET, objective="multiclassova", sigmoid=1.7), digits.x, digits.y),
            digits.x,
        ),
        "categories": lambda: (
            fit(lightgbm.LGBMClassifier(**QUIET), missing(x), y, categorical_feature=columns),
            missing(x),
        ),
        "root": lambda: (fit(lightgbm.LGBMRegressor(**QUIET, reg_sqrt=True), *diabetes()), diabetes()[0]),
        "quantile": lambda: (fit(lightgbm.LGBMRegressor(**QUIET, objective="quantile"), *diabetes()), diabetes()[0]),
        "forest": lambda: (
            fit(lightgbm.LGBMClassifier(**QUIET, boosting_type="rf", subsample=0.5, subsample_freq=1), x, y),
            x,
        ),
    }
    model, rows = made[kind]()
    expected = model.booster_.predict(rows.astype(np.float64)).reshape(len(rows), -1)
    expected = np.hstack([1 - expected, expected]) if kind in {"categories", "forest"} else expected
    assert np.array_equal(originals(saved(model.booster_, tmp_path, ".txt"), rows.astype(np.float64)), expected)


@pytest.mark.parametrize("suffix", [".json", ".ubj"])
@pytest.mark.parametrize("kind", ["categories", "dart", "forest", "poisson", "targets"])
def test_xgboost_answers_the_same_from_the_file_that_it_is_given(kind: str, suffix: str, tmp_path: Path) -> None:
    x, y, kinds = german()
    many, values = diabetes()
    made: dict[str, Callable[[], Any]] = {
        "categories": lambda: fit(
            xgboost.XGBClassifier(**FEW, enable_categorical=True, feature_types=kinds, max_cat_to_onehot=4), x, y
        ),
        "dart": lambda: fit(xgboost.XGBClassifier(**FEW, booster="dart", rate_drop=0.5), x, y),
        "forest": lambda: fit(xgboost.XGBRFClassifier(**FEW), x, y),
        "poisson": lambda: fit(xgboost.XGBRegressor(**FEW, objective="count:poisson"), many, values),
        "targets": lambda: fit(xgboost.XGBRegressor(**FEW), many, np.stack([values, -values], axis=1)),
    }
    model = made[kind]()
    rows = missing(many if kind in {"poisson", "targets"} else x)
    expected = model.predict_proba(rows) if hasattr(model, "predict_proba") else model.predict(rows)
    found = originals(saved(model, tmp_path, suffix), rows)
    assert np.allclose(found, np.reshape(expected, (len(rows), -1)), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: re.sub(r"threshold=\S+", "threshold=inf", text, count=1),
        lambda text: re.sub(r"split_gain=.*", "split_gain=", text, count=1),
        lambda text: re.sub(r"tree_sizes=\S+", "tree_sizes=7", text, count=1),
        lambda text: re.sub(r"leaf_count=.*\n", "", text),
        lambda text: re.sub(r"feature_names=.*\n", "", text),
        lambda text: re.sub(r"num_class=1\n", "num_class=99\n", text),
    ],
)
def test_a_lightgbm_file_that_crashes_its_loader(change: Callable[[str], str], tmp_path: Path) -> None:
    x, y = diabetes()
    path = saved(fit(lightgbm.LGBMRegressor(**QUIET), x, y).booster_, tmp_path, ".txt")
    text = path.read_text()
    assert change(text) != text
    path.write_bytes(change(text).encode())
    assert survives(path, x)


@pytest.mark.parametrize(("field", "value"), [("parents", 10**9), ("id", 5), ("left_children", -7)])
def test_an_xgboost_file_that_crashes_its_loader(field: str, value: int, tmp_path: Path) -> None:
    x, y = diabetes()
    path = saved(fit(xgboost.XGBRegressor(**FEW), x, y), tmp_path, ".json")
    model = json.loads(path.read_text())
    tree = model["learner"]["gradient_booster"]["model"]["trees"][1]
    if field == "id":
        tree["id"] = value
    else:
        leaf = tree["left_children"].index(-1)
        tree[field][leaf] = value
    path.write_text(json.dumps(model))
    assert survives(path, x)


@pytest.mark.parametrize(
    "change",
    [
        lambda learner: learner["learner_model_param"].update(num_feature="9" * 400),
        lambda learner: learner["learner_model_param"].update(num_feature="2000000000"),
        lambda learner: learner["learner_model_param"].update(num_target="500000000"),
        lambda learner: learner["attributes"].update(scikit_learn="{}", best_iteration="9" * 5000),
        lambda learner: learner["gradient_booster"]["model"].update(iteration_indptr=[0, -1]),
        lambda learner: learner["gradient_booster"]["model"].update(iteration_indptr=[0, 10**9]),
        lambda learner: learner["gradient_booster"]["model"]["gbtree_model_param"].update(num_parallel_tree="0"),
        lambda learner: learner["gradient_booster"]["model"]["trees"][-1]["left_children"].__setitem__(0, 10**6),
    ],
)
def test_sizes_that_lie_are_told_and_cost_nothing(change: Callable[[Any], None], tmp_path: Path) -> None:
    x, y = diabetes()
    path = saved(fit(xgboost.XGBRegressor(**FEW), x, y), tmp_path, ".json")
    model = json.loads(path.read_text())
    change(model["learner"])
    path.write_text(json.dumps(model))
    try:
        read_source(path)
    except ModelFileError:
        return
    assert "9" * 100 in path.read_text(), "only a best round that is no number may be passed over"


def test_lightgbm_sizes_that_lie(tmp_path: Path) -> None:
    x, y = diabetes()
    path = saved(fit(lightgbm.LGBMRegressor(**QUIET), x, y).booster_, tmp_path, ".txt")
    path.write_text(re.sub(r"max_feature_idx=\d+", "max_feature_idx=2000000000", path.read_text()))
    with pytest.raises(ModelFileError, match="features"):
        read_source(path)


@pytest.mark.parametrize("kind", [b"Z", b"T", b"F"])
def test_a_short_file_that_unpacks_into_all_memory(kind: bytes, tmp_path: Path) -> None:
    """Values without bytes: a file of n bytes would hold about n squared of them."""
    count = 20_000
    part = b"[$" + kind + b"#l" + struct.pack(">i", count)
    path = tmp_path / "model.ubj"
    path.write_bytes(b"[" + part * (count // 8) + b"]")
    with pytest.raises(ModelFileError, match="not UBJSON at byte 4"):
        read_source(path)
