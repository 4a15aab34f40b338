"""Writes a model file for XGBoost anew, of what was read and checked.

XGBoost's loader trusts a file: a parent, a child or a number of a tree that is not there crashes it. So it never sees a file that came from
elsewhere, but this one. Left out is what answers do not depend on (gains, weights, names of features, attributes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from garrison.sealing.formats.trees import Tree

_NO_PARENT = 2**31 - 1
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forest:
    """Trees that passed, and what XGBoost must know beside them.

    Attributes:
        trees: their leaves hold what stands in the file, before `drops`.
        drops: what each tree's leaves are multiplied by (dart); None for plain boosting.
        ends: where each round's trees begin, and the end; None in files that do not say.
        parallel: trees of one round, where `ends` is not there.
        objective: its name and settings.
        version, base_score, classes, targets: as in the file.
    """

    trees: Sequence[Tree]
    drops: Sequence[float] | None
    ends: Sequence[int] | None
    parallel: int
    features: int
    classes: int
    targets: int
    base_score: str
    objective: dict[str, Any]
    version: Sequence[int]


def written(forest: Forest) -> bytes:
    """The file, as JSON."""
    model: dict[str, Any] = {
        "gbtree_model_param": {"num_trees": str(len(forest.trees)), "num_parallel_tree": str(forest.parallel)},
        "tree_info": [tree.target for tree in forest.trees],
        "trees": [_tree(i, tree, forest.features) for i, tree in enumerate(forest.trees)],
    }
    if forest.ends is not None:
        model["iteration_indptr"] = list(forest.ends)
    booster: dict[str, Any] = {"name": "gbtree", "model": model}
    if forest.drops is not None:
        booster = {"name": "dart", "gbtree": booster, "weight_drop": list(forest.drops)}
    numbers = {"num_feature": forest.features, "num_class": forest.classes, "num_target": forest.targets}
    learner = {
        "attributes": {},
        "feature_names": [],
        "feature_types": [],
        "gradient_booster": booster,
        "learner_model_param": {"base_score": forest.base_score} | {name: str(n) for name, n in numbers.items()},
        "objective": _objective(forest),
    }
    return msgspec.json.encode({"learner": learner, "version": list(forest.version)})


def _objective(forest: Forest) -> dict[str, Any]:
    """Settings that are texts, or lists of numbers; the number of classes is that of the trees."""
    given = forest.objective
    found: dict[str, Any] = {"name": given["name"]}
    for key, value in given.items():
        if key.endswith("_param") and isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
            found[key] = value | ({"num_class": str(forest.classes)} if "num_class" in value else {})
        elif isinstance(value, list) and all(isinstance(number, (int, float)) for number in value):
            found[key] = value
    return found


def _tree(number: int, tree: Tree, features: int) -> dict[str, Any]:
    nodes = len(tree.feature)
    leaf = tree.yes < 0
    parents = np.full(nodes, _NO_PARENT)
    for children in (tree.yes, tree.no):
        parents[children[~leaf]] = np.flatnonzero(~leaf)
    conditions = np.clip(np.where(leaf, tree.value, tree.threshold), -_LARGEST, _LARGEST).astype(np.float32)
    zeros = [0.0] * nodes
    return {
        "id": number,
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(features),
            "num_nodes": str(nodes),
            "size_leaf_vector": "1",
        },
        "left_children": np.where(leaf, -1, tree.yes).tolist(),
        "right_children": np.where(leaf, -1, tree.no).tolist(),
        "parents": parents.tolist(),
        "split_indices": np.where(leaf, 0, tree.feature).tolist(),
        "split_conditions": conditions.astype(np.float64).tolist(),
        "default_left": (tree.missing_yes & ~leaf).astype(np.int64).tolist(),
        "base_weights": zeros,
        "loss_changes": zeros,
        "sum_hessian": zeros,
        **_categories(tree, nodes),
    }


def _categories(tree: Tree, nodes: int) -> dict[str, list[int]]:
    splits = sorted(tree.members)
    sizes = [len(tree.members[node]) for node in splits]
    kinds = np.zeros(nodes, dtype=np.int64)
    kinds[splits] = 1
    return {
        "split_type": kinds.tolist(),
        "categories": [category for node in splits for category in tree.members[node]],
        "categories_nodes": splits,
        "categories_segments": [sum(sizes[:i]) for i in range(len(sizes))],
        "categories_sizes": sizes,
    }
