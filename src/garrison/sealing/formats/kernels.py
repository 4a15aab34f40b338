"""Kernel machines as ONNX graphs of plain operators: what the general converter does not know, or loses digits of.

Support vector machines and kernel ridge regression answer sum_i a_i k(x, x_i) + b. The runtime's own operator for them computes in single
precision only, and there is none for kernel ridge regression. The graph here computes in the precision of its input.

Not covered: more than two classes (a vote over pairs), probabilities calibrated on top, kernels given as a function or a matrix, kernel
ridge regression on sparse rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from garrison.errors import MissingExtraError
from garrison.types import Array, FloatArray

try:
    from onnx import ModelProto, helper, numpy_helper
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.svm import SVC, SVR, NuSVC, NuSVR
except ImportError as error:
    raise MissingExtraError(error.name or "scikit-learn", "sklearn") from error

KERNELS = ("linear", "poly", "rbf", "sigmoid")
OUTPUT = "sum"
_OPSET = 17


@dataclass(frozen=True, slots=True, eq=False)
class Machine:
    """sum_i a_i k(x, x_i) + b.

    Attributes:
        rows: x_i, (rows, features).
        weights: a, (rows, outputs).
        constants: b, (outputs,).
        kernel: one of `KERNELS`.
        gamma, coef0, degree: of the kernel.
    """

    rows: FloatArray
    weights: FloatArray
    constants: FloatArray
    kernel: str
    gamma: float
    coef0: float
    degree: float


def machine_of(estimator: Any) -> Machine | None:
    """A fitted kernel machine's parts; None for every other estimator, and for what is not covered."""
    kernel = getattr(estimator, "kernel", None)
    if not isinstance(kernel, str) or kernel not in KERNELS:
        return None
    if isinstance(estimator, KernelRidge):
        rows = np.asarray(estimator.X_fit_, dtype=np.float64)
        weights = np.asarray(estimator.dual_coef_, dtype=np.float64).reshape(len(rows), -1)
        gamma = 1.0 / rows.shape[1] if estimator.gamma is None else float(estimator.gamma)
        return Machine(
            rows, weights, np.zeros(weights.shape[1]), kernel, gamma, float(estimator.coef0), estimator.degree
        )
    two = (
        isinstance(estimator, SVC | NuSVC) and len(estimator.classes_) == 2 and not hasattr(estimator, "predict_proba")
    )
    if not two and not isinstance(estimator, SVR | NuSVR):
        return None
    if not isinstance(estimator.support_vectors_, np.ndarray):
        return None  # fitted on sparse rows
    weights = np.asarray(estimator.dual_coef_, dtype=np.float64).T
    constants = np.asarray(estimator.intercept_, dtype=np.float64)
    rows, gamma = estimator.support_vectors_.astype(np.float64), float(estimator._gamma)  # noqa: SLF001
    return Machine(rows, weights, constants, kernel, gamma, float(estimator.coef0), estimator.degree)


def to_onnx(machine: Machine, name: str, *, double: bool) -> ModelProto:
    """A graph with one input `x` (rows, features) and one output `sum` (rows, outputs), both in the same precision."""
    dtype = np.dtype(np.float64 if double else np.float32)
    squares = (machine.rows**2).sum(axis=1)
    # The runtime merges a product with one number after a MatMul into an attribute of single precision: gamma goes into the rows,
    # and 2, which is exact, stays.
    scale = machine.gamma if machine.kernel in {"poly", "sigmoid"} else 1.0
    numbers: dict[str, Array] = {
        "rows": scale * machine.rows.T,
        "weights": machine.weights,
        "constants": machine.constants,
        "squares": squares,
        "minus_gamma": np.array(-machine.gamma),
        "coef0": np.array(machine.coef0),
        "degree": np.array(float(machine.degree)),
        "two": np.array(2.0),
        "zero": np.array(0.0),
    }
    nodes = [helper.make_node("MatMul", ["x", "rows"], ["inner"]), *_kernel_nodes(machine.kernel)]
    nodes += [
        helper.make_node("MatMul", ["near", "weights"], ["weighted"]),
        helper.make_node("Add", ["weighted", "constants"], [OUTPUT]),
    ]
    used = {name for node in nodes for name in node.input}
    element = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", element, [None, machine.rows.shape[1]])],
        [helper.make_tensor_value_info(OUTPUT, element, [None, machine.weights.shape[1]])],
        [
            numpy_helper.from_array(np.ascontiguousarray(value, dtype=dtype), key)
            for key, value in numbers.items()
            if key in used
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)


def _kernel_nodes(kernel: str) -> list[Any]:
    """From `inner` (and `x`) to `near`."""
    match kernel:
        case "linear":
            return [helper.make_node("Identity", ["inner"], ["near"])]
        case "rbf":
            return [
                helper.make_node("ReduceSumSquare", ["x"], ["own"], axes=[1], keepdims=1),
                helper.make_node("Mul", ["inner", "two"], ["twice"]),
                helper.make_node("Sub", ["own", "twice"], ["part"]),
                helper.make_node("Add", ["part", "squares"], ["away"]),
                helper.make_node("Max", ["away", "zero"], ["distance"]),  # rounding must not make it negative
                helper.make_node("Mul", ["distance", "minus_gamma"], ["exponent"]),
                helper.make_node("Exp", ["exponent"], ["near"]),
            ]
    shifted = helper.make_node("Add", ["inner", "coef0"], ["shifted"])
    if kernel == "poly":
        return [shifted, helper.make_node("Pow", ["shifted", "degree"], ["near"])]
    return [shifted, helper.make_node("Tanh", ["shifted"], ["near"])]
