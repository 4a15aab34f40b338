"""Reads .skops files, and converts fitted scikit-learn estimators.

skops builds an object only from types that are known to run nothing; all others must be trusted by name. `TRUSTED_TYPES` adds those
that ordinary estimators need. A decision tree's arrays are checked before native code walks them.

Classifiers with `predict_proba` give probabilities, those with `decision_function` alone give scores (two columns, -s and s, where
there are two classes), regressors values. The graph computes in single precision unless `double` is asked for; a row whose feature
lies within rounding of a tree's threshold may then take the other branch.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from garrison.errors import MissingExtraError, ModelFileError, UnsupportedModelError
from garrison.hardening.artifact import sha256_of_file
from garrison.hardening.graphs import Declared, check_model
from garrison.hardening.scoring import open_session, score
from garrison.sealing.formats.kernels import machine_of
from garrison.sealing.formats.kernels import to_onnx as machine_to_onnx
from garrison.sealing.formats.source import Source
from garrison.types import Array

try:
    import skl2onnx
    import sklearn.base
    import skops.io
    from onnx import ModelProto, TensorProto, helper
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
    from sklearn.kernel_ridge import KernelRidge
except ImportError as error:
    raise MissingExtraError(error.name or "scikit-learn", "sklearn") from error

TRUSTED_TYPES = (
    "sklearn.tree._tree.Tree",  # its arrays are checked, see _check_tree
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
)
INPUT = "x"
_LEAF = -1
_DEEPEST = 12
_OPSET = 21
"""That of the guard's graph: a newer one, as the converter takes it by itself, would only have to be met by the guard."""


def read(path: Path, *, double: bool = False) -> Source:
    """A fitted estimator from a .skops file.

    Raises:
        ModelFileError: not a .skops file.
        UnsupportedModelError: it needs types that are not trusted, is not fitted, or cannot be converted.
    """
    try:
        untrusted = sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED_TYPES))
    except Exception as error:
        raise ModelFileError(f"{path}: not a .skops file: {type(error).__name__}") from error
    if untrusted:
        raise UnsupportedModelError(
            f"{path}: needs types that are not known to be harmless: {', '.join(untrusted)}. Where you trust the file, load "
            "it yourself and seal the estimator with garrison.sealing, or convert it to ONNX"
        )
    try:
        estimator = skops.io.load(path, trusted=list(TRUSTED_TYPES))
    except Exception as error:
        raise ModelFileError(f"{path}: cannot be loaded: {type(error).__name__}: {str(error)[:200]}") from error
    try:
        return convert(estimator, double=double, sha256=sha256_of_file(path))
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path}: {error}") from error


def convert(estimator: Any, *, double: bool = False, sha256: str | None = None) -> Source:
    """A fitted estimator or pipeline as an ONNX graph with one input `x` of shape (rows, features).

    Args:
        estimator: fitted on a numeric table.
        double: compute in double precision.
        sha256: digest of its file; without one, that of the graph is taken.

    Raises:
        UnsupportedModelError: no estimator, not fitted, without numeric predictions, or not to be converted.
    """
    for tree in _trees(estimator, 0):
        _check_tree(tree)
    features = getattr(estimator, "n_features_in_", None)
    if not isinstance(estimator, sklearn.base.BaseEstimator) or not isinstance(features, int):
        raise UnsupportedModelError(
            f"expected an estimator fitted on a table (with n_features_in_), found {type(estimator)}"
        )
    declared, method = _kind(estimator)
    kind = (DoubleTensorType if double else FloatTensorType)([None, features])
    machine = machine_of(estimator)
    if machine is not None and (double or isinstance(estimator, KernelRidge)):
        converted = machine_to_onnx(machine, type(estimator).__name__, double=double)
    else:
        converted = _to_onnx(estimator, kind, declared)
    model = check_model(converted, type(estimator).__name__)
    model = _in_two_columns(model, features, np.float64 if double else np.float32) if declared == "scores" else model

    def reference(rows: dict[str, Array]) -> Array:
        found = np.asarray(method(rows[INPUT].astype(np.float64)), dtype=np.float64)
        if found.ndim == 2:
            return found
        return np.stack([-found, found], axis=1) if declared == "scores" else found[:, np.newaxis]

    return Source(
        model=model,
        format="scikit-learn",
        sha256=sha256 or hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest(),
        declared=declared,
        labels=() if declared == "values" else tuple(str(c) for c in estimator.classes_),
        reference=reference,
        packages=("scikit-learn", "skl2onnx", "skops", "onnx"),
    )


def _kind(estimator: Any) -> tuple[Declared, Any]:
    """What the estimator answers, and the method that says it."""
    name = type(estimator).__name__
    if sklearn.base.is_regressor(estimator):
        return "values", estimator.predict
    if not sklearn.base.is_classifier(estimator) or not isinstance(getattr(estimator, "classes_", None), np.ndarray):
        raise UnsupportedModelError(f"{name}: expected a fitted classifier or regressor with one target")
    if hasattr(estimator, "predict_proba"):
        return "probabilities", estimator.predict_proba
    if hasattr(estimator, "decision_function"):
        return "scores", estimator.decision_function
    raise UnsupportedModelError(f"{name}: answers neither probabilities nor decision values")


def _to_onnx(estimator: Any, kind: Any, declared: Declared) -> ModelProto:
    """Converters know different options, and refuse those that they do not know."""
    plain: list[dict[str, bool]] = [{"zipmap": False}, {}]
    raw = [{"zipmap": False, "raw_scores": True}, {"raw_scores": True}, *plain]
    choices = raw if declared == "scores" else plain if declared == "probabilities" else [{}]
    final = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    for i, options in enumerate(choices):
        given = {id(final): options} if options else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return skl2onnx.convert_sklearn(
                    estimator, initial_types=[(INPUT, kind)], options=given, target_opset=_OPSET
                )
        except NameError as error:  # an option that this converter does not know
            if i == len(choices) - 1:
                raise UnsupportedModelError(f"{type(estimator).__name__}: {error}") from error
        except Exception as error:
            raise UnsupportedModelError(
                f"{type(estimator).__name__} cannot be converted to ONNX: {type(error).__name__}: {str(error)[:200]}"
            ) from error
    raise UnsupportedModelError(f"{type(estimator).__name__} cannot be converted to ONNX")


def _in_two_columns(model: ModelProto, features: int, dtype: Any) -> ModelProto:
    """Decision values of two classes as (-s, s), whatever the converter made of them."""
    sample = {INPUT: np.zeros((2, features), dtype=dtype)}
    found = {k: v for k, v in score(open_session(model.SerializeToString()), sample).items() if v.dtype.kind == "f"}
    name, value = next(iter(found.items()))
    if value.reshape(len(value), -1).shape[1] != 1:
        return model
    element = helper.np_dtype_to_tensor_dtype(value.dtype)
    column = helper.make_tensor("garrison_column", TensorProto.INT64, [2], [-1, 1])
    model.graph.initializer.append(column)
    model.graph.node.extend(
        [
            helper.make_node("Reshape", [name, column.name], ["garrison_right"]),
            helper.make_node("Neg", ["garrison_right"], ["garrison_left"]),
            helper.make_node("Concat", ["garrison_left", "garrison_right"], ["scores"], axis=1),
        ]
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("scores", element, [None, 2]))
    if not any(opset.domain in {"", "ai.onnx"} for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", 17))
    return model


def _trees(value: Any, depth: int) -> Iterator[Any]:
    """Every fitted tree inside an estimator."""
    if depth > _DEEPEST:
        return
    if f"{type(value).__module__}.{type(value).__qualname__}" == "sklearn.tree._tree.Tree":
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _trees(inner, depth + 1)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        for inner in value.ravel():
            yield from _trees(inner, depth + 1)
    elif isinstance(value, dict):
        yield from _trees(list(value.values()), depth + 1)
    elif isinstance(value, sklearn.base.BaseEstimator):
        yield from _trees(vars(value), depth + 1)


def _check_tree(tree: Any) -> None:
    """A tree's numbers are walked by native code without checks: each child must exist and lie behind its parent."""
    nodes = int(tree.node_count)
    left, right, feature = (np.asarray(a) for a in (tree.children_left, tree.children_right, tree.feature))
    own = np.arange(nodes)
    leaf = left == _LEAF
    inner = ~leaf
    sound = (
        len(left) == len(right) == len(feature) == nodes
        and bool((leaf == (right == _LEAF)).all())
        and all(bool(((a[inner] > own[inner]) & (a[inner] < nodes)).all()) for a in (left, right))
        and bool(((feature[inner] >= 0) & (feature[inner] < tree.n_features)).all())
    )
    if not sound:
        raise UnsupportedModelError("a decision tree's nodes do not form a tree; the file is damaged or forged")
