"""Out-of-distribution scores over a model's penultimate features, computed by its own graph as one output more.

    mahalanobis   -sqrt(min_k (z - m_k)' S^-1 (z - m_k) / width)     Lee et al., NeurIPS 2018, eq. 2; class means m_k, one covariance S
    knn           -|z/|z| - the k-th nearest of a bank of such|      Sun et al., ICML 2022, eq. 1; a random part of the training rows

What the scores are made of (means, whitening, bank) are parameters of the graph: large arrays do not belong in a manifest, and there they are
signed, and loaded on demand, like any other. Nodes are of kinds that do not change between operator sets 11 and 23. NaN features give NaN,
which the guard takes as out of distribution.

Not checked: whether the rows are what the model was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from garrison.errors import CalibrationError, MissingExtraError, UnsupportedModelError
from garrison.hardening.data import Part
from garrison.hardening.scoring import Report, open_session, score, silent
from garrison.types import FEATURE_SCORES, Array, FloatArray

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

MOST_ROWS = 20_000
"""Training rows that are looked at."""
BANK_ROWS = 1_000
NEIGHBOUR = 10
"""k of `knn`: its place among the nearest of the bank."""
SHRINKAGE = 1e-3
"""Share of the mean variance that is added to each, so that features that never vary do not count without bound."""
LEAST_OPSET = 11
_LEAST_NORM = 1e-12
_PREFIX = "garrison_score/"
Labels = npt.NDArray[np.integer[Any]]


def add_feature_score(
    model: onnx.ModelProto, name: str, training: Part, seed: int = 0, threads: int = 1, report: Report = silent
) -> onnx.ModelProto:
    """A copy of the graph with the output `name`, shape (rows, 1), in the type of its probabilities.

    Args:
        model: a classifier with canonical outputs, see `garrison.hardening.graphs`; it is not changed.
        name: one of `FEATURE_SCORES`.
        training: rows that the model was trained on; without labels its own answers stand for them.
        seed: of the rows that are picked.
        threads: of the runtime.
        report: told how far the scoring is.

    Raises:
        UnsupportedModelError: the graph does not end in a dense layer over features, or its operator set is below 11.
        CalibrationError: fewer rows than the score needs, or features that are not finite.
    """
    if name not in FEATURE_SCORES:
        raise CalibrationError(f"expected one of {', '.join(FEATURE_SCORES)}, found {name!r}")
    opset = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 0)
    if opset < LEAST_OPSET:
        raise UnsupportedModelError(f"--score {name} needs operator set {LEAST_OPSET} or newer, found {opset}")
    features = penultimate(model.graph)
    z, y = _scored(model, features, training, seed, threads, report)
    made = _Made(model.graph, name, z.dtype)
    _NODES[name](made, features, z, y, seed)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.node.extend(made.nodes)
    changed.graph.initializer.extend(made.initializers)
    answer = next(output for output in model.graph.output if output.name == "probabilities")
    kind = answer.type.tensor_type.elem_type
    changed.graph.node.append(helper.make_node("Cast", [made.last], [name], name=f"{_PREFIX}cast", to=kind))
    changed.graph.output.append(helper.make_tensor_value_info(name, kind, ["rows", 1]))
    return changed


def penultimate(graph: onnx.GraphProto) -> str:
    """The tensor that the last dense layer takes.

    Raises:
        UnsupportedModelError: the answer does not come from a dense layer with a matrix among the parameters, or that layer takes an input as it is.
    """
    makers = {output: node for node in graph.node for output in node.output}
    parameters = {tensor.name for tensor in graph.initializer}
    tensor = "logits" if "logits" in makers else "probabilities"
    for _ in range(len(graph.node)):
        node = makers.get(tensor)
        if node is None:
            break
        rest = [name for name in node.input if name and name not in parameters]
        if node.op_type in {"Gemm", "MatMul"} and node.input[0] in rest and node.input[1] in parameters:
            if node.input[0] in makers:
                return str(node.input[0])
            break
        if node.op_type not in {"Softmax", "Add", "Identity", "Div", "Mul", "Cast"} or len(rest) != 1:
            break
        tensor = rest[0]
    raise UnsupportedModelError(
        "--score mahalanobis and knn need a network whose last layer is a dense one over inner features; use max-probability or energy"
    )


def _scored(
    model: onnx.ModelProto, features: str, training: Part, seed: int, threads: int, report: Report
) -> tuple[FloatArray, Labels]:
    """Features (rows, width) and classes of some training rows."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(helper.make_empty_tensor_value_info(features))
    rows = np.sort(np.random.default_rng(seed).permutation(len(training))[:MOST_ROWS])
    inputs = {name: x[rows] for name, x in training.inputs.items()}
    found = score(open_session(shown.SerializeToString(), threads), inputs, [features, "probabilities"], report)
    z, y = found[features], found["probabilities"].argmax(axis=1) if training.y is None else training.y[rows]
    if z.ndim != 2 or z.dtype not in (np.float32, np.float64):
        raise UnsupportedModelError(f"expected features of shape (rows, width), found {z.dtype} {z.shape}")
    if not np.isfinite(z).all():
        raise CalibrationError("the model's inner features are NaN or infinite on training rows")
    return z, y


class _Made:
    """Nodes and initializers in the order they are made."""

    def __init__(self, graph: onnx.GraphProto, name: str, dtype: np.dtype[Any]) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.last, self._dtype, self._prefix = "", dtype, f"{_PREFIX}{name}/"
        names = {name for node in graph.node for name in (*node.input, *node.output)}
        if name in names or any(other.startswith(self._prefix) for other in names):
            raise UnsupportedModelError(f"the graph has a tensor named {name!r} already; rename it")

    def constant(self, value: Array, dtype: np.dtype[Any] | None = None) -> str:
        name = f"{self._prefix}parameter_{len(self.initializers)}"
        array = np.ascontiguousarray(value, dtype=dtype or self._dtype)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Append a node; returns the name of its first output."""
        name = f"{self._prefix}{kind.lower()}_{len(self.nodes)}"
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"node_{name}", **attributes))
        self.last = name
        return name

    def whole(self, number: int) -> str:
        return self.constant(np.array([number]), np.dtype(np.int64))


def _mahalanobis(made: _Made, features: str, z: FloatArray, y: Labels, seed: int) -> None:  # noqa: ARG001
    """Distances by the product, so that no array of (rows, classes, width) arises; the smallest, its root in units of the width's."""
    width = z.shape[1]
    mean, whitening, means = fitted(z, y)
    ones = made.constant(np.ones((width, 1)))
    white = made.add("MatMul", made.add("Sub", features, made.constant(mean)), made.constant(whitening))
    own = made.add("MatMul", made.add("Mul", white, white), ones)
    cross = made.add("MatMul", white, made.constant(-2.0 * means.T))
    squares = made.add("Add", made.add("Add", cross, made.constant((means**2).sum(axis=1))), own)
    nearest = made.add("TopK", squares, made.whole(1), outputs=2, axis=1, largest=0)
    # Abs, where rounding went below 0: a maximum with 0 would make 0 of NaN, the best of all scores.
    share = made.add("Div", made.add("Abs", nearest), made.constant(np.array([float(width)])))
    made.add("Neg", made.add("Sqrt", share))


def fitted(z: FloatArray, y: Labels) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Overall mean, whitening matrix W with W W' the inverse of the shared covariance, and whitened class means (classes, width).

    Args:
        z: features, (rows, width).
        y: classes.
    """
    wide = z.astype(np.float64)
    mean, classes = wide.mean(axis=0), np.unique(y)
    means = np.stack([wide[y == k].mean(axis=0) for k in classes])
    rest = wide - means[np.searchsorted(classes, y)]
    covariance = rest.T @ rest / len(rest)
    floor = SHRINKAGE * max(float(np.trace(covariance)) / len(covariance), float(np.finfo(np.float32).tiny))
    lower = np.linalg.cholesky(covariance + floor * np.eye(len(covariance)))
    whitening: FloatArray = np.linalg.inv(lower).T
    return mean, whitening, (means - mean) @ whitening


def _knn(made: _Made, features: str, z: FloatArray, y: Labels, seed: int) -> None:
    """Distances between normed features by their cosine."""
    if len(z) <= NEIGHBOUR:
        raise CalibrationError(f"--score knn needs more than {NEIGHBOUR} training rows, found {len(z)}")
    bank = z[bank_rows(y, seed)].astype(np.float64)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True) + _LEAST_NORM
    square = made.add("MatMul", made.add("Mul", features, features), made.constant(np.ones((z.shape[1], 1))))
    norm = made.add("Add", made.add("Sqrt", square), made.constant(np.array([_LEAST_NORM])))
    cosine = made.add("MatMul", made.add("Div", features, norm), made.constant(bank.T))
    nearest = made.add("TopK", cosine, made.whole(NEIGHBOUR), outputs=2, axis=1, largest=1)
    last = made.add("Gather", nearest, made.whole(NEIGHBOUR - 1), axis=1)
    two = made.constant(np.array([2.0]))
    made.add("Neg", made.add("Sqrt", made.add("Abs", made.add("Sub", two, made.add("Mul", two, last)))))


def bank_rows(y: Labels, seed: int) -> npt.NDArray[np.intp]:
    """Rows of the bank: as many of each class, as far as there are, `BANK_ROWS` in all at most, and `NEIGHBOUR` at least."""
    order = np.random.default_rng(seed).permutation(len(y))
    classes, shuffled = np.unique(y), y[order]
    share = max(1, BANK_ROWS // len(classes))
    picked = np.concatenate([order[shuffled == k][:share] for k in classes])
    rest = np.setdiff1d(order, picked, assume_unique=True)
    return np.sort(np.concatenate([picked, rest[: max(0, NEIGHBOUR - len(picked))]]))


_NODES: dict[str, Callable[[_Made, str, FloatArray, Labels, int], None]] = {"mahalanobis": _mahalanobis, "knn": _knn}
