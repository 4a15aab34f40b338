"""Reads the model files of XGBoost: `save_model("model.json")` and `save_model("model.ubj")`.

The file is read here, checked, and made into a graph. XGBoost itself is asked about the owner's rows, so that both can be compared; its
loader gets a file that is written anew (`garrison.sealing.formats.xgboost_json`). Not read: linear boosters, trees with vectors at their
leaves, the old binary format, pickles.

A model that was stopped early and saved by the scikit-learn wrapper answers with the trees up to its best round, as the wrapper does.
XGBoost computes in single precision, and so does the graph.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from garrison.bundle.strict_json import refuse_ambiguous
from garrison.errors import MissingExtraError, ModelFileError, UnsupportedModelError
from garrison.sealing.formats import ubjson
from garrison.sealing.formats.source import Source, bounded_bytes
from garrison.sealing.formats.trees import INPUT, Ensemble, Link, Tree, check_tree, declared, to_onnx
from garrison.sealing.formats.xgboost_json import Forest, written
from garrison.types import Array

try:
    import xgboost
except ImportError as error:
    raise MissingExtraError("xgboost", "xgboost") from error

NEWEST_VERSION = 3
_MOST_DIGITS = 9
_CLASSES = {"binary:logistic": 1, "multi:softprob": 2, "multi:softmax": 2}
_LINKS: dict[str, Link] = {
    **dict.fromkeys(("reg:squarederror", "reg:linear", "reg:absoluteerror", "reg:pseudohubererror"), "identity"),
    **dict.fromkeys(("reg:squaredlogerror", "reg:quantileerror", "binary:logitraw"), "identity"),
    **dict.fromkeys(("rank:ndcg", "rank:map", "rank:pairwise"), "identity"),
    **dict.fromkeys(("binary:logistic", "reg:logistic"), "sigmoid"),
    **dict.fromkeys(("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"), "exp"),
    **dict.fromkeys(("multi:softprob", "multi:softmax"), "softmax"),
}
_FROM_PROBABILITY = frozenset({"binary:logistic", "reg:logistic"})


class _Count(msgspec.Struct):
    size_leaf_vector: str = "1"


class _Tree(msgspec.Struct):
    left_children: list[int]
    right_children: list[int]
    split_indices: list[int]
    split_conditions: list[float]
    default_left: list[int | bool]
    split_type: list[int] = []
    categories: list[int] = []
    categories_nodes: list[int] = []
    categories_segments: list[int] = []
    categories_sizes: list[int] = []
    tree_param: _Count = msgspec.field(default_factory=_Count)


class _Rounds(msgspec.Struct):
    num_parallel_tree: str = "1"


class _Forest(msgspec.Struct):
    gbtree_model_param: _Rounds = msgspec.field(default_factory=_Rounds)
    trees: list[_Tree] = []
    tree_info: list[int] = []
    iteration_indptr: list[int] | None = None


class _Model(msgspec.Struct):
    model: _Forest


class _Booster(msgspec.Struct):
    name: str = "gbtree"
    model: _Forest | None = None
    gbtree: _Model | None = None
    weight_drop: list[float] = []


class _Numbers(msgspec.Struct):
    base_score: str
    num_class: str
    num_feature: str
    num_target: str = "1"


class _Learner(msgspec.Struct):
    gradient_booster: _Booster
    learner_model_param: _Numbers
    objective: dict[str, Any]
    attributes: dict[str, str] = {}


class _File(msgspec.Struct):
    learner: _Learner
    version: list[int]


def read(path: Path) -> Source:
    """A boosted model of trees.

    Raises:
        ModelFileError: not a model file of XGBoost.
        UnsupportedModelError: a booster or an objective that is not converted.
    """
    data = bounded_bytes(path)
    found = _learner(data, path)
    learner = found.learner
    objective = _objective(learner, str(path))
    classes = objective in _CLASSES
    rounds = _rounds(learner)
    ensemble = _ensemble(learner, rounds, str(path))
    model = to_onnx(ensemble, str(path), classes=classes)
    return Source(
        model=model,
        format="xgboost",
        sha256=hashlib.sha256(data).hexdigest(),
        declared=declared(ensemble, classes=classes),
        reference=_reference(_forest_of(found, str(path)), path, objective, rounds),
        packages=("xgboost", "onnx"),
        rows_off=0.0,
    )


def _learner(data: bytes, path: Path) -> _File:
    try:
        if path.suffix.lower() == ".ubj":
            found = msgspec.convert(ubjson.decode(data), _File)
        else:
            refuse_ambiguous(data)
            found = msgspec.json.decode(data, type=_File)
    except (ValueError, RecursionError, ModelFileError) as error:  # msgspec's own errors are ValueErrors
        raise ModelFileError(f"{path}: not a model file of XGBoost (save_model): {str(error)[:200]}") from error
    if not found.version or found.version[0] > NEWEST_VERSION:
        raise UnsupportedModelError(
            f"{path}: written by XGBoost {found.version}; known are versions to {NEWEST_VERSION}"
        )
    return found


def _objective(learner: _Learner, name: str) -> str:
    found = learner.objective.get("name")
    if not isinstance(found, str) or found not in _LINKS:
        raise UnsupportedModelError(f"{name}: the objective {str(found)[:40]!r} is not converted")
    return found


def _rounds(learner: _Learner) -> int | None:
    """How many rounds of boosting count; None for all."""
    best = learner.attributes.get("best_iteration", "")
    if "scikit_learn" not in learner.attributes or not (
        best.isascii() and best.isdigit() and len(best) <= _MOST_DIGITS
    ):
        return None
    return int(best) + 1


def _forest(booster: _Booster, name: str) -> tuple[_Forest, list[float]]:
    """The trees, and what each one's leaves are multiplied by."""
    if booster.name == "gbtree" and booster.model is not None:
        return booster.model, [1.0] * len(booster.model.trees)
    if booster.name == "dart" and booster.gbtree is not None:
        forest = booster.gbtree.model
        if len(booster.weight_drop) == len(forest.trees):
            return forest, booster.weight_drop
    raise UnsupportedModelError(f"{name}: expected trees (gbtree or dart), found the booster {booster.name[:40]!r}")


def _ensemble(learner: _Learner, rounds: int | None, name: str) -> Ensemble:
    objective = _objective(learner, name)
    forest, weights = _forest(learner.gradient_booster, name)
    numbers = learner.learner_model_param
    try:
        features, classes, targets = (int(n) for n in (numbers.num_feature, numbers.num_class, numbers.num_target))
        base = np.array([float(text) for text in numbers.base_score.strip("[] ").split(",")])
    except ValueError as error:
        raise ModelFileError(f"{name}: its sizes cannot be read") from error
    outputs = max(1, classes, targets)
    kept = _kept(forest, rounds)
    sound = (
        features >= 1
        and outputs <= len(forest.trees)
        and len(base) in {1, outputs}
        and len(forest.tree_info) == len(forest.trees)
        and all(0 <= target < outputs for target in forest.tree_info)
        and (objective not in _CLASSES or (classes >= 2) == (_CLASSES[objective] == 2))
        and 1 <= kept <= len(forest.trees)
        and _sound_rounds(forest)
    )
    if not sound:
        raise ModelFileError(f"{name}: its parts contradict each other, or it has no trees")
    trees = [
        _tree(tree, target, weight, name)
        for tree, target, weight in list(zip(forest.trees, forest.tree_info, weights, strict=True))[:kept]
    ]
    return Ensemble(
        trees=trees,
        features=features,
        base=np.broadcast_to(_margins(base, objective), (outputs,)).copy(),
        strict=True,
        link=_LINKS[objective],
    )


def _sound_rounds(forest: _Forest) -> bool:
    """Whether the rounds begin with the first tree, follow each other, and end with the last."""
    ends, parallel = forest.iteration_indptr, forest.gbtree_model_param.num_parallel_tree
    if not (parallel.isascii() and parallel.isdigit() and len(parallel) <= _MOST_DIGITS and int(parallel) >= 1):
        return False
    return ends is None or (ends[:1] == [0] and ends[-1] == len(forest.trees) and ends == sorted(ends))


def _forest_of(found: _File, name: str) -> Forest:
    """What XGBoost is given. To be called for a file of which `_ensemble` has found nothing wrong."""
    learner = found.learner
    forest, weights = _forest(learner.gradient_booster, name)
    numbers = learner.learner_model_param
    trees = [_tree(tree, target, 1.0, name) for tree, target in zip(forest.trees, forest.tree_info, strict=True)]
    for tree in trees:  # also those after the best round
        check_tree(tree, int(numbers.num_feature), name)
    return Forest(
        trees=trees,
        drops=weights if learner.gradient_booster.name == "dart" else None,
        ends=forest.iteration_indptr,
        parallel=int(forest.gbtree_model_param.num_parallel_tree),
        features=int(numbers.num_feature),
        classes=int(numbers.num_class),
        targets=int(numbers.num_target),
        base_score=numbers.base_score,
        objective=learner.objective,
        version=found.version,
    )


def _kept(forest: _Forest, rounds: int | None) -> int:
    if rounds is None or forest.iteration_indptr is None:
        return len(forest.trees)
    ends = forest.iteration_indptr
    return ends[rounds] if rounds < len(ends) else len(forest.trees)


def _margins(base: Any, objective: str) -> Any:
    """A base score is stored as the answer that it alone would give."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if objective in _FROM_PROBABILITY:
            return np.log(base / (1.0 - base))
        return np.log(base) if _LINKS[objective] == "exp" else base


def _tree(tree: _Tree, target: int, weight: float, name: str) -> Tree:
    nodes = len(tree.left_children)
    parts = (tree.right_children, tree.split_indices, tree.split_conditions, tree.default_left)
    if tree.tree_param.size_leaf_vector not in {"0", "1"}:
        raise UnsupportedModelError(f"{name}: trees with a vector at each leaf (multi_output_tree) are not converted")
    if any(len(part) != nodes for part in parts) or len(tree.split_type) not in {0, nodes}:
        raise ModelFileError(f"{name}: a tree's lists are not equally long")
    conditions = np.array(tree.split_conditions, dtype=np.float32)
    left = np.array(tree.left_children, dtype=np.int64)
    value = (conditions * np.float32(weight)).astype(np.float64)
    members = _members(tree, nodes, name)
    return Tree(
        feature=np.array(tree.split_indices, dtype=np.int64),
        threshold=np.where(left >= 0, conditions, 0).astype(np.float64),
        yes=left,
        no=np.array(tree.right_children, dtype=np.int64),
        missing_yes=np.array(tree.default_left, dtype=np.bool_),
        value=value,
        target=target,
        members=members,
        member_yes=False,  # a category of the set goes right
    )


def _members(tree: _Tree, nodes: int, name: str) -> dict[int, tuple[int, ...]]:
    """By node, the categories that go right. Every categorical split must name some."""
    found: dict[int, tuple[int, ...]] = {}
    try:
        for node, start, size in zip(
            tree.categories_nodes, tree.categories_segments, tree.categories_sizes, strict=True
        ):
            members = tuple(sorted(set(tree.categories[start : start + size])))
            if start < 0 or not members or len(tree.categories) < start + size or members[0] < 0 or node in found:
                raise ValueError("no categories")
            found[node] = members
    except ValueError as error:
        raise ModelFileError(f"{name}: a categorical split without readable categories") from error
    categorical = {i for i, kind in enumerate(tree.split_type) if kind == 1 and tree.left_children[i] >= 0}
    if categorical != found.keys() or any(not 0 <= node < nodes for node in found):
        raise ModelFileError(f"{name}: a categorical split without readable categories")
    return found


def _reference(forest: Forest, path: Path, objective: str, rounds: int | None) -> Any:
    """The original's answers, from XGBoost itself."""
    margins = objective == "multi:softmax"

    def reference(rows: dict[str, Array]) -> Array:
        try:
            booster = xgboost.Booster(params={"nthread": 1})
            booster.load_model(bytearray(written(forest)))
            matrix = xgboost.DMatrix(np.asarray(rows[INPUT], dtype=np.float32), missing=np.nan, nthread=1)
            found = booster.predict(
                matrix, output_margin=margins, validate_features=False, iteration_range=(0, rounds or 0)
            )
        except xgboost.core.XGBoostError as error:
            raise ModelFileError(f"{path}: XGBoost cannot use it: {str(error)[:200]}") from error
        answers: Array = np.asarray(found, dtype=np.float64).reshape(len(found), -1)
        if margins:
            powers = np.exp(answers - answers.max(axis=1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=1, keepdims=True))
        return np.hstack([1.0 - answers, answers]) if objective == "binary:logistic" else answers

    return reference
