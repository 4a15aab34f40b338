"""Hyperparameter stealing: lambda of real learners, from answers and training rows; rounded answers give another one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Lasso, LogisticRegression, Ridge
from sklearn.preprocessing import scale
from sklearn.svm import SVC, LinearSVC
from tests.attacks.extraction.sealed import figures, fit, sealed, stolen

from garrison.attacks.base import Trial
from garrison.attacks.exam import Exam
from garrison.attacks.extraction.hyperparameter_stealing import HyperparameterStealing
from garrison.attacks.extraction.stationarity import KERNEL_LEARNERS, LEARNERS, Fitted, kernel_matrix
from garrison.attacks.knowledge import Knowledge, Training
from garrison.attacks.oracle import LabelsOnly
from garrison.errors import AuditError
from garrison.guard.defenses.release import Release
from garrison.types import Array

LIBLINEAR = {"intercept_regularised": True}


def diabetes() -> tuple[Array, Array]:
    x, y = load_diabetes(return_X_y=True)
    return x / x.std(axis=0), y


def cancer() -> tuple[Array, Array]:
    x, y = load_breast_cancer(return_X_y=True)
    return scale(x), y


def digits() -> tuple[Array, Array]:
    x, y = load_digits(return_X_y=True)
    return x[:600] / 16, y[:600]


MODELS: dict[str, tuple[Any, Callable[[], tuple[Array, Array]], str, float, dict[str, Any], float]] = {
    "ridge": (Ridge(alpha=0.1), diabetes, "ridge", 0.1, {}, 1e-3),
    "lasso": (Lasso(alpha=1.0, tol=1e-10), diabetes, "lasso", 1.0, {}, 1e-3),
    "logistic": (LogisticRegression(C=0.5, tol=1e-8, max_iter=5000), cancer, "logistic-regression", 2.0, {}, 1e-3),
    "softmax": (LogisticRegression(tol=1e-7, max_iter=5000), digits, "logistic-regression", 1.0, {}, 1e-3),
    "svm": (LinearSVC(C=0.5, tol=1e-8, dual=False), cancer, "linear-svm", 2.0, LIBLINEAR, 1e-3),
    "svm of ten": (LinearSVC(C=0.5, tol=1e-8, dual=False), digits, "linear-svm", 2.0, LIBLINEAR, 1e-3),
    "hinge": (
        LinearSVC(C=0.5, tol=1e-8, max_iter=1_000_000, loss="hinge", random_state=0),
        cancer,
        "linear-svm-hinge",
        2.0,
        LIBLINEAR,
        1e-3,
    ),
}


def attacked(kind: str, folder: Path, *, release: Release | None = None, double: bool = True) -> Trial:
    estimator, data, algorithm, strength, settings, _ = MODELS[kind]
    x, y = data()
    model = sealed(fit(estimator, x, y), x, y, folder, release=release, double=double)
    target = model.target if release is None else model.guarded()
    training = Training(x, y.astype(np.float64), algorithm, settings)
    return stolen(
        HyperparameterStealing(),
        target,
        model.target,
        x,
        x,
        400,
        training=training,
        hyperparameters={"lambda": strength},
    )


@pytest.mark.parametrize("kind", MODELS)
def test_lambda_of_a_sealed_model(kind: str, tmp_path: Path) -> None:
    got = figures(attacked(kind, tmp_path))
    assert got["relative_error_lambda"] < MODELS[kind][-1]
    assert got["fidelity"] == 1.0


def test_answers_rounded_to_tens_give_another_lambda(tmp_path: Path) -> None:
    exact = figures(attacked("logistic", tmp_path / "a"))
    rounded = figures(attacked("logistic", tmp_path / "b", release=Release(mode="rounded", decimals=2)))
    assert exact["relative_error_lambda"] < 1e-3 < 0.1 < rounded["relative_error_lambda"]


def test_kernel_learners_are_solved_from_the_weights_of_their_training_rows() -> None:
    x, y = cancer()
    x, y = x[:200], y[:200]
    settings = {"kernel": "rbf", "gamma": 0.03}
    k = kernel_matrix(x, x, settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        machine = SVC(kernel="rbf", gamma=0.03, C=0.5, tol=1e-6).fit(x, y)
    alpha = np.zeros((len(x), 1))
    alpha[machine.support_, 0] = machine.dual_coef_[0]
    fitted = Fitted(x, y.astype(np.float64), alpha, machine.intercept_, settings)
    assert KERNEL_LEARNERS["kernel-svm"](fitted) == pytest.approx(2.0, rel=1e-3)
    signs = np.where(y > 0, 1.0, -1.0)
    ridge = np.linalg.solve(k + 0.7 * np.eye(len(x)), signs)[:, np.newaxis]
    assert KERNEL_LEARNERS["kernel-ridge"](Fitted(x, signs, ridge, np.zeros(1), settings)) == pytest.approx(
        0.7, rel=1e-6
    )
    logistic = _kernel_logistic(k, y > 0, 0.7)
    assert KERNEL_LEARNERS["kernel-logistic"](
        Fitted(x, y.astype(np.float64), logistic, np.zeros(1), settings)
    ) == pytest.approx(0.7, rel=1e-6)


def _kernel_logistic(k: Array, y: Array, strength: float) -> Array:
    """Newton's method on sum log-loss + strength alpha' K alpha / 2."""
    alpha = np.zeros(len(k))
    for _ in range(50):
        p = 1 / (1 + np.exp(-(k @ alpha)))
        weight = p * (1 - p)
        alpha -= np.linalg.solve(weight[:, np.newaxis] * k + strength * np.eye(len(k)), p - y + strength * alpha)
    return alpha[:, np.newaxis]


def test_without_training_rows_nothing_is_asked(tmp_path: Path) -> None:
    x, y = diabetes()
    model = sealed(fit(Ridge(), x, y), x, y, tmp_path)
    with pytest.raises(AuditError, match="rows that the model was trained on"):
        stolen(HyperparameterStealing(), model.target, model.target, x, x, 100, hyperparameters={"lambda": 1.0})


def test_an_unknown_learner_and_labels_alone_are_refused(tmp_path: Path) -> None:
    x, y = digits()
    model = sealed(fit(LogisticRegression(max_iter=50), x, y), x, y, tmp_path)
    with pytest.raises(AuditError, match="kernel-ridge"):
        stolen(HyperparameterStealing(), model.target, model.target, x, x, 90, training=Training(x, y, "perceptron"))
    with pytest.raises(AuditError, match="labels alone"):
        HyperparameterStealing().carry_out(
            LabelsOnly(model.target), Knowledge(x, training=Training(x, y, "logistic")), Exam(x, None), budget=9, seed=0
        )


@pytest.mark.slow
def test_over_http(tmp_path: Path) -> None:
    x, y = diabetes()
    model = sealed(fit(Ridge(alpha=0.1), x, y), x, y, tmp_path)
    with model.over_http(tmp_path / "state") as remote:
        trial = stolen(
            HyperparameterStealing(),
            remote,
            model.target,
            x,
            x,
            100,
            training=Training(x, y, "ridge"),
            hyperparameters={"lambda": 0.1},
        )
    assert figures(trial)["relative_error_lambda"] < 1e-3
    assert trial.queries == 22


def test_every_learner_is_named_in_the_page() -> None:
    page = (Path(__file__).parents[3] / "docs" / "attacks" / "hyperparameter-stealing.md").read_text()
    for name in (*LEARNERS, *KERNEL_LEARNERS):
        assert f"`{name}`" in page


KERNEL_MODELS: dict[str, tuple[Any, Callable[[], tuple[Array, Array]], str, float, dict[str, Any]]] = {
    "kernel ridge": (
        KernelRidge(kernel="rbf", gamma=0.1, alpha=0.5),
        diabetes,
        "kernel-ridge",
        0.5,
        {"kernel": "rbf", "gamma": 0.1, "fit_intercept": False},
    ),
    "kernel svm": (
        SVC(kernel="rbf", gamma=0.03, C=0.5, tol=1e-6),
        cancer,
        "kernel-svm",
        2.0,
        {"kernel": "rbf", "gamma": 0.03},
    ),
    "svm by the kernel": (
        SVC(kernel="linear", C=0.5, tol=1e-6),
        cancer,
        "linear-svm-hinge",
        2.0,
        {},
    ),
}


@pytest.mark.parametrize("kind", KERNEL_MODELS)
def test_lambda_of_a_sealed_kernel_machine(kind: str, tmp_path: Path) -> None:
    estimator, data, algorithm, strength, settings = KERNEL_MODELS[kind]
    x, y = data()
    x, y = x[:200], y[:200]
    model = sealed(fit(estimator, x, y), x, y, tmp_path)
    training = Training(x, y.astype(np.float64), algorithm, settings)
    trial = stolen(
        HyperparameterStealing(),
        model.target,
        model.target,
        x,
        x,
        500,
        training=training,
        hyperparameters={"lambda": strength},
    )
    got = figures(trial)
    assert got["relative_error_lambda"] < 1e-3
    assert got["fidelity"] == 1.0
