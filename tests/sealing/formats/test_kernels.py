"""Kernel machines: sealed in double precision they answer as the originals do, to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.sealing.formats.test_sklearn import diabetes, digits, fit, served, through_a_file

from garrison.types import Task

pytest.importorskip("skl2onnx")

from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.svm import SVC, SVR

from garrison.sealing.formats.kernels import KERNELS, machine_of


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_support_vector_machine_of_two_classes(kernel: str, tmp_path: Any) -> None:
    x, y = digits(two=True)
    x = x / 16
    estimator = fit(SVC(kernel=kernel), x, y)
    _, answers, task = served(through_a_file(estimator, tmp_path), tmp_path, x, y, double=True)
    expected = estimator.decision_function(x)
    assert task is Task.SCORES
    assert np.abs(answers - np.stack([-expected, expected], axis=1)).max() < 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize(
    "estimator",
    [
        SVR(C=10.0),
        SVR(kernel="poly", degree=2),
        KernelRidge(kernel="rbf", gamma=0.5),
        KernelRidge(kernel="poly", degree=2, gamma=0.2),
        KernelRidge(),
    ],
    ids=repr,
)
def test_a_kernel_regressor(estimator: Any, tmp_path: Any) -> None:
    x, y = diabetes()
    x = x / x.std(axis=0)
    _, answers, task = served(through_a_file(fit(estimator, x, y), tmp_path), tmp_path, x, y, double=True)
    expected = estimator.predict(x)
    assert task is Task.REGRESSION
    assert np.abs(answers[:, 0] - expected).max() < 1e-7 * np.abs(expected).max()


def test_kernel_ridge_regression_in_single_precision(tmp_path: Any) -> None:
    x, y = diabetes()
    estimator = fit(KernelRidge(kernel="rbf"), x, y)
    _, answers, _ = served(through_a_file(estimator, tmp_path), tmp_path, x, y)
    assert np.abs(answers[:, 0] - estimator.predict(x)).max() < 0.05


def test_what_is_no_kernel_machine_of_one_sum_is_left_to_the_converter() -> None:
    x, y = digits()
    assert machine_of(fit(SVC(), x, y)) is None
    assert machine_of(Ridge()) is None
    assert machine_of(KernelRidge(kernel="cosine")) is None
