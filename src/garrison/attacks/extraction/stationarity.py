"""The strength of a regulariser from a minimum: lambda with b + lambda a = 0, for each learner.

Wang and Gong, "Stealing Hyperparameters in Machine Learning" (IEEE S&P 2018), tables 1 and 2. Objectives, w weights, c constants:

    ridge                 sum (y - xw - c)^2 + lambda |w|^2
    lasso                 sum (y - xw - c)^2 / (2 n) + lambda |w|_1
    logistic-regression   sum log-loss + lambda |w|^2 / 2; lambda is 1 / C of scikit-learn
    l1-logistic           sum log-loss + lambda |w|_1; 1 / C
    linear-svm            sum max(0, 1 - y f)^2 + lambda |w|^2 / 2; 1 / C
    linear-svm-hinge      sum max(0, 1 - y f) + lambda |w|^2 / 2; 1 / C
    kernel-ridge          sum (y - f)^2 + lambda alpha' K alpha, f = K alpha
    kernel-logistic       sum log-loss + lambda alpha' K alpha / 2
    kernel-svm            sum max(0, 1 - y f) + lambda alpha' K alpha / 2; 1 / C

Settings: `fit_intercept` (True), `intercept_regularised` (False; True for LIBLINEAR, whose constant is one more weight), and of a kernel
`kernel` ("linear", "rbf" or "poly"), `gamma`, `degree`, `coef0`.

A hinge's corner (y f = 1) and that of |w| (w = 0) have no gradient. Weights at 0 are left out, as in the paper. Rows at the corner enter
with an unknown share of the hinge's slope each, solved along with lambda; the paper leaves them out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from garrison.attacks.extraction.equations import softmax
from garrison.errors import AuditError
from garrison.types import BoolArray, FloatArray

KERNELS = ("rbf", "linear", "poly")
"""The first is the usual one."""
_CORNER = 1e-3
"""Distance of y f from 1 within which a row may lie at the hinge's corner; solvers stop near it, not at it."""
_ZERO = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A stolen model and what it was trained on.

    Attributes:
        x: (rows, features).
        y: (rows,), class numbers or real values.
        weights: (features, outputs), for a kernel learner (rows, outputs).
        constants: (outputs,).
        settings: see the module.
    """

    x: FloatArray
    y: FloatArray
    weights: FloatArray
    constants: FloatArray
    settings: Mapping[str, Any]

    def column(self, weights: FloatArray, constants: FloatArray) -> Fitted:
        return dataclasses.replace(self, weights=weights, constants=constants)

    def values(self) -> FloatArray:
        """What the model says of its training rows, shape (rows, outputs)."""
        found: FloatArray = self.x @ self.weights + self.constants
        return found

    def targets(self) -> FloatArray:
        """(rows, outputs): real values, or for classes -1 and 1, one column where there are two classes."""
        outputs = self.weights.shape[1]
        if outputs == 1:
            return np.where(self.y == self.y.max(), 1.0, -1.0)[:, np.newaxis]
        return np.where(self.y[:, np.newaxis] == np.unique(self.y)[np.newaxis], 1.0, -1.0)

    def augmented(self) -> tuple[FloatArray, FloatArray]:
        """Rows and weights, with the constant as one more weight where it is regularised."""
        if not self.settings.get("intercept_regularised", False):
            return self.x, self.weights
        ones = np.ones((len(self.x), 1))
        return np.concatenate([self.x, ones], axis=1), np.concatenate([self.weights, self.constants[np.newaxis]])


def strength(loss: FloatArray, regulariser: FloatArray) -> float:
    """Lambda = -(b.a) / (a.a) from the two gradients, equally shaped; not a number where the regulariser's is zero."""
    a, b = regulariser.ravel(), loss.ravel()
    size = float(a @ a)
    return -float(b @ a) / size if size > 0 else math.nan


def kernel_matrix(x: FloatArray, y: FloatArray, settings: Mapping[str, Any]) -> FloatArray:
    """k(x_i, y_j), shape (rows of x, rows of y).

    Raises:
        AuditError: a kernel that is not known.
    """
    kind, inner = settings.get("kernel", KERNELS[0]), x @ y.T
    gamma = float(settings.get("gamma", 1.0 / x.shape[1]))
    if kind == "linear":
        return inner
    if kind == "poly":
        found: FloatArray = (gamma * inner + float(settings.get("coef0", 1.0))) ** int(settings.get("degree", 3))
        return found
    if kind != "rbf":
        raise AuditError(f"hyperparameter-stealing: knows the kernels linear, rbf and poly; found {kind!r}")
    squares = (x**2).sum(axis=1)[:, np.newaxis] - 2 * inner + (y**2).sum(axis=1)
    near: FloatArray = np.exp(-gamma * np.maximum(squares, 0.0))
    return near


def _ridge(model: Fitted) -> float:
    left = model.y.reshape(len(model.x), -1) - model.values()
    return strength(-2 * model.x.T @ left, 2 * model.weights)


def _lasso(model: Fitted) -> float:
    left = model.y.reshape(len(model.x), -1) - model.values()
    return _absolute(-model.x.T @ left / len(model.x), model.weights)


def _absolute(loss: FloatArray, weights: FloatArray) -> float:
    there = np.abs(weights) > _ZERO * np.abs(weights).max()
    return strength(loss[there], np.sign(weights)[there])


def _said(values: FloatArray) -> FloatArray:
    """Probabilities from logits; of one column that of the second class."""
    return (
        softmax(np.concatenate([np.zeros_like(values), values], axis=1))[:, 1:]
        if values.shape[1] == 1
        else softmax(values)
    )


def _log_loss(model: Fitted, values: FloatArray) -> FloatArray:
    """Its gradient by the values, shape (rows, outputs)."""
    found: FloatArray = _said(values) - (model.targets() > 0)
    return found


def _logistic(model: Fitted) -> float:
    x, weights = model.augmented()
    return strength(x.T @ _log_loss(model, model.values()), weights)


def _l1_logistic(model: Fitted) -> float:
    x, weights = model.augmented()
    return _absolute(x.T @ _log_loss(model, model.values()), weights)


def _squared_hinge(model: Fitted) -> float:
    x, weights = model.augmented()
    y = model.targets()
    inside = np.maximum(1 - y * model.values(), 0.0)
    return strength(-2 * x.T @ (inside * y), weights)


def _hinge(model: Fitted) -> float:
    x, weights = model.augmented()
    y = model.targets()
    found = [_cornered(x, y[:, k], (y * model.values())[:, k], weights[:, k]) for k in range(weights.shape[1])]
    return float(np.median(found))


def _cornered(x: FloatArray, y: FloatArray, margin: FloatArray, weights: FloatArray) -> float:
    """Lambda with sum over rows inside of y x + sum over rows at the corner of s y x = lambda w, and s unknown."""
    at: BoolArray = np.abs(margin - 1) <= _CORNER
    inside = (margin < 1) & ~at
    design = np.concatenate([weights[:, np.newaxis], -(x[at] * y[at, np.newaxis]).T], axis=1)
    return float(np.linalg.lstsq(design, x[inside].T @ y[inside], rcond=None)[0][0])


def _kernel_ridge(model: Fitted) -> float:
    # At the minimum K (lambda alpha - (y - K alpha)) = 0. K is nearly singular; without it the equation is the better one.
    k = kernel_matrix(model.x, model.x, model.settings)
    left = model.y.reshape(len(k), -1) - k @ model.weights - model.constants
    return strength(-left, model.weights)


def _kernel_logistic(model: Fitted) -> float:
    k = kernel_matrix(model.x, model.x, model.settings)
    return strength(k @ _log_loss(model, k @ model.weights + model.constants), k @ model.weights)


def _kernel_svm(model: Fitted) -> float:
    # alpha_i = y_i / lambda for every row inside the margin, less at the corner, 0 beyond it.
    k = kernel_matrix(model.x, model.x, model.settings)
    y = model.targets()
    margin = y * (k @ model.weights + model.constants)
    inside = margin < 1 - _CORNER
    if not inside.any():
        return math.nan
    return 1.0 / float(np.median((model.weights * y)[inside]))


LEARNERS: dict[str, Callable[[Fitted], float]] = {
    "ridge": _ridge,
    "lasso": _lasso,
    "logistic-regression": _logistic,
    "l1-logistic": _l1_logistic,
    "linear-svm": _squared_hinge,
    "linear-svm-hinge": _hinge,
}
KERNEL_LEARNERS: dict[str, Callable[[Fitted], float]] = {
    "kernel-ridge": _kernel_ridge,
    "kernel-logistic": _kernel_logistic,
    "kernel-svm": _kernel_svm,
}
