"""Ensembles of decision trees as ONNX graphs, for boosted models. What a reader hands over is checked before anything walks it.

A split sends a row to its `yes` child where `x < threshold` (`strict`) or `x <= threshold`, to the side of `missing_yes` where x is NaN.
A categorical split asks whether a category is among some: the graph looks that up in a table, as a column of its own beside the
features, so that it too is a comparison with a threshold (1 for a member, 0 for none, NaN for a missing value).

Invariant: no row changes its side. A threshold of double precision is rounded *down* to single precision for single-precision features,
and `x <= t` is the same for every one of them then. Not equal to the last bit: sums over trees, which the runtime adds in its own order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from garrison.errors import MissingExtraError, ModelFileError, UnsupportedModelError
from garrison.hardening.graphs import Declared, check_model
from garrison.types import Array, BoolArray

try:
    from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

INPUT = "x"
MOST_NODES = 20_000_000
MOST_FEATURES = 1_000_000
MOST_TABLE_VALUES = 50_000_000
"""Of all tables of categories together."""
Link = Literal["identity", "sigmoid", "exp", "signed square", "softmax"]
_OPSET, _ML_OPSET, _IR = 17, 3, 8
_ZERO = 1e-35  # what LightGBM takes for zero

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """One tree; arrays of shape (nodes,), the root is node 0.

    Attributes:
        feature: which feature a split looks at; any number at leaves.
        threshold: of a numerical split, in double precision.
        yes, no: children; both -1 at a leaf.
        missing_yes: where a missing value goes.
        value: what a leaf adds.
        target: to which sum it is added.
        members: by node, the categories of a categorical split; those go to `yes` where `member_yes` says so.
        member_yes: see above.
    """

    feature: Index
    threshold: npt.NDArray[np.float64]
    yes: Index
    no: Index
    missing_yes: BoolArray
    value: npt.NDArray[np.float64]
    target: int
    members: dict[int, tuple[int, ...]] = field(default_factory=dict)
    member_yes: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ensemble:
    """A sum of trees, and what is made of it.

    Attributes:
        features: columns of the input.
        base: shape (targets,), where the sums begin.
        strict: `<` in place of `<=`.
        link: from sums to the answer.
        slope: the sums are multiplied by this before the link.
        zero_is_missing: features whose zeros count as missing.
        negative_is_unknown: a category below 0 is unknown however near to 0; else it is cut off towards 0 first.
    """

    trees: Sequence[Tree]
    features: int
    base: npt.NDArray[np.float64]
    strict: bool
    link: Link
    slope: float = 1.0
    zero_is_missing: tuple[int, ...] = ()
    negative_is_unknown: bool = True


def declared(ensemble: Ensemble, *, classes: bool) -> Declared:
    """What the answer means."""
    if classes:
        return "probabilities"
    return "values" if len(ensemble.base) == 1 else "scores"


def check_tree(tree: Tree, features: int, name: str) -> None:
    """See that the nodes form a tree, and that what they name is there.

    Raises:
        ModelFileError: they do not.
    """
    nodes = len(tree.feature)
    inner = (tree.yes >= 0) | (tree.no >= 0)
    children = np.concatenate([tree.yes[inner], tree.no[inner]])
    sound = (
        0 < nodes <= MOST_NODES
        and bool(((children > 0) & (children < nodes)).all())
        and len(np.unique(children)) == len(children)
        and bool(((tree.feature[inner] >= 0) & (tree.feature[inner] < features)).all())
        and _reached(tree, inner) == 1 + len(children)
        and bool(np.isfinite(tree.value[~inner]).all())
        and not np.isnan(tree.threshold[inner]).any()
    )
    if not sound:
        raise ModelFileError(f"{name}: its nodes do not form decision trees; the file is damaged or forged")


def _reached(tree: Tree, inner: BoolArray) -> int:
    """How many nodes a walk from the root meets; ends, since no node is anybody's child twice and the root nobody's."""
    count, level = 0, np.zeros(1, dtype=np.int64)
    while len(level):
        count += len(level)
        open_ = level[inner[level]]
        level = np.concatenate([tree.yes[open_], tree.no[open_]])
    return count


def to_onnx(ensemble: Ensemble, name: str, *, classes: bool, double: bool = False) -> ModelProto:
    """The graph: input `x`, output `probabilities`, `values` or `scores`.

    Args:
        ensemble: its trees are checked here.
        name: for messages.
        classes: the answer is one probability vector a row (with one sum: of two classes).
        double: take and compare features in double precision; the answer is in single precision all the same.

    Raises:
        ModelFileError: no sound trees.
        UnsupportedModelError: categories that would need too large a table.
    """
    if ensemble.features > MOST_FEATURES:
        raise ModelFileError(
            f"{name}: says that it has {ensemble.features} features; at most {MOST_FEATURES} are taken"
        )
    for tree in ensemble.trees:
        check_tree(tree, ensemble.features, name)
    dtype = np.dtype(np.float64 if double else np.float32)
    graph = _Graph(dtype)
    filled = _filled(graph, ensemble)
    columns, column_of = _category_columns(graph, ensemble, filled, name)
    graph.add("TreeEnsembleRegressor", [columns], "sums", domain="ai.onnx.ml", **_nodes(ensemble, column_of, dtype))
    _answer(graph, ensemble, classes=classes)
    return check_model(graph.model(ensemble, classes=classes), name)


class _Graph:
    """Nodes and initializers, as they are added."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.output = ""

    def add(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def constant(self, name: str, values: Any, dtype: Any = None) -> str:
        array = np.asarray(values, dtype=self.dtype if dtype is None else dtype)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def model(self, ensemble: Ensemble, *, classes: bool) -> ModelProto:
        element = helper.np_dtype_to_tensor_dtype(self.dtype)
        answer = TensorProto.FLOAT  # what the runtime's trees give, whatever they take
        width = max(2, len(ensemble.base)) if classes else len(ensemble.base)
        graph = helper.make_graph(
            self.nodes,
            "trees",
            [helper.make_tensor_value_info(INPUT, element, ["rows", ensemble.features])],
            [helper.make_tensor_value_info(self.output, answer, ["rows", width])],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR)


def _filled(graph: _Graph, ensemble: Ensemble) -> str:
    """The input, with NaN for zeros where these count as missing."""
    if not ensemble.zero_is_missing:
        return INPUT
    mask = np.zeros(ensemble.features, dtype=np.bool_)
    mask[list(ensemble.zero_is_missing)] = True
    tiny = graph.add("LessOrEqual", [graph.add("Abs", [INPUT], "size"), graph.constant("zero", _ZERO)], "tiny")
    where = graph.add("And", [tiny, graph.constant("zero_is_missing", mask, np.bool_)], "no_value")
    return graph.add("Where", [where, graph.constant("nan", np.nan), INPUT], "filled")


def _category_columns(
    graph: _Graph, ensemble: Ensemble, source: str, name: str
) -> tuple[str, dict[tuple[int, tuple[int, ...]], int]]:
    """The features with a column for each set of categories beside them, and where each column stands."""
    sets: dict[int, dict[tuple[int, ...], None]] = {}
    for tree in ensemble.trees:
        for node, members in tree.members.items():
            sets.setdefault(int(tree.feature[node]), {})[members] = None
    if sum((max(map(max, found)) + 3) * len(found) for found in sets.values()) > MOST_TABLE_VALUES:
        raise UnsupportedModelError(f"{name}: its categorical splits need tables of over {MOST_TABLE_VALUES} values")
    column_of: dict[tuple[int, tuple[int, ...]], int] = {}
    parts = [source]
    for feature, found in sorted(sets.items()):
        for members in found:
            column_of[feature, members] = ensemble.features + len(column_of)
        parts.append(_looked_up(graph, source, feature, list(found), below=ensemble.negative_is_unknown))
    return (graph.add("Concat", parts, "columns", axis=1) if sets else source), column_of


def _looked_up(graph: _Graph, source: str, feature: int, sets: list[tuple[int, ...]], *, below: bool) -> str:
    """For each set, whether the feature's category is in it. Row 0 of the table is for categories below 0, the last for unknown ones."""
    most = max(map(max, sets))
    table = np.zeros((most + 3, len(sets)))
    for column, members in enumerate(sets):
        table[np.asarray(members) + 1, column] = 1.0
    at = f"feature_{feature}"
    value = graph.add("Gather", [source, graph.constant(f"{at}_number", feature, np.int64)], f"{at}_value", axis=1)
    missing = graph.add("IsNaN", [value], f"{at}_missing")
    outside: list[str] = [missing]
    if below:
        outside.append(graph.add("Less", [value, graph.constant(f"{at}_zero", 0.0)], f"{at}_below"))
        graph.add("Or", outside, f"{at}_outside")
    low, high = graph.constant(f"{at}_least", -1.0), graph.constant(f"{at}_most", most + 1.0)
    plain = graph.add("Where", [f"{at}_outside" if below else missing, low, value], f"{at}_plain")
    whole = graph.add(
        "Cast", [graph.add("Clip", [plain, low, high], f"{at}_clipped")], f"{at}_whole", to=TensorProto.INT64
    )
    row = graph.add("Add", [whole, graph.constant(f"{at}_one", 1, np.int64)], f"{at}_row")
    found = graph.add("Gather", [graph.constant(f"{at}_table", table), row], f"{at}_found", axis=0)
    wide = graph.add("Unsqueeze", [missing, graph.constant(f"{at}_axis", [1], np.int64)], f"{at}_wide")
    return graph.add("Where", [wide, graph.constant(f"{at}_nan", np.nan), found], f"{at}_members")


def _nodes(
    ensemble: Ensemble, column_of: dict[tuple[int, tuple[int, ...]], int], dtype: np.dtype[Any]
) -> dict[str, Any]:
    """The attributes of the runtime's operator."""
    lists: dict[str, list[Array]] = {}

    def add(**arrays: Array) -> None:
        for key, array in arrays.items():
            lists.setdefault(key, []).append(np.asarray(array))

    for number, tree in enumerate(ensemble.trees):
        tree = _with_columns(tree, column_of)
        nodes, leaf = len(tree.feature), tree.yes < 0
        own = np.arange(nodes)
        add(
            nodes_treeids=np.full(nodes, number),
            nodes_nodeids=own,
            nodes_featureids=np.where(leaf, 0, tree.feature),
            nodes_values=np.where(leaf, 0.0, tree.threshold),
            nodes_truenodeids=np.where(leaf, 0, tree.yes),
            nodes_falsenodeids=np.where(leaf, 0, tree.no),
            nodes_missing_value_tracks_true=tree.missing_yes & ~leaf,
            leaf=leaf,
            target_treeids=np.full(int(leaf.sum()), number),
            target_nodeids=own[leaf],
            target_ids=np.full(int(leaf.sum()), tree.target),
            target_weights=tree.value[leaf],
        )
    joined = {key: np.concatenate(arrays) for key, arrays in lists.items()}
    mode = b"BRANCH_LT" if ensemble.strict else b"BRANCH_LEQ"
    modes = [b"LEAF" if leaf else mode for leaf in joined.pop("leaf").tolist()]
    reals = {"nodes_values": joined.pop("nodes_values"), "target_weights": joined.pop("target_weights")}
    reals["base_values"] = ensemble.base
    reals["nodes_values"] = reals["nodes_values"] if dtype == np.float64 else _down(reals["nodes_values"])
    found: dict[str, Any] = {key: array.astype(np.int64).tolist() for key, array in joined.items()}
    for key, array in reals.items():
        if dtype == np.float64:
            found[f"{key}_as_tensor"] = numpy_helper.from_array(array.astype(np.float64), key)
        else:
            found[key] = array.astype(np.float32).tolist()
    targets = len(ensemble.base)
    return found | {"nodes_modes": modes, "n_targets": targets, "aggregate_function": "SUM", "post_transform": "NONE"}


def _with_columns(tree: Tree, column_of: dict[tuple[int, tuple[int, ...]], int]) -> Tree:
    """Categorical splits as comparisons with a half: below it (the `yes` child of either comparison) are those that are no members."""
    if not tree.members:
        return tree
    feature, threshold = tree.feature.copy(), tree.threshold.copy()
    yes, no, missing = tree.yes.copy(), tree.no.copy(), tree.missing_yes.copy()
    for node, members in tree.members.items():
        feature[node], threshold[node] = column_of[int(feature[node]), members], 0.5
        if tree.member_yes:
            yes[node], no[node], missing[node] = no[node], yes[node], not missing[node]
    return Tree(feature, threshold, yes, no, missing, tree.value, tree.target)


def _down(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The largest single-precision numbers that are not above these."""
    with np.errstate(over="ignore"):
        near = values.astype(np.float32)
    low: npt.NDArray[np.float32] = np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)
    return low


def _answer(graph: _Graph, ensemble: Ensemble, *, classes: bool) -> None:
    """From the sums to the answer; a probability vector is a softmax, so that the logits before it can be had too."""
    sums = "sums"
    if ensemble.slope != 1.0:
        sums = graph.add("Mul", [sums, graph.constant("slope", ensemble.slope, np.float32)], "scaled")
    if not classes:
        graph.output = "values" if len(ensemble.base) == 1 else "scores"
        _link(graph, ensemble.link, sums)
        return
    graph.output = "probabilities"
    if len(ensemble.base) == 1:  # softmax of (-z/2, z/2) is the sigmoid of z
        sums = graph.add("MatMul", [sums, graph.constant("halves", [[-0.5, 0.5]], np.float32)], "both")
    graph.add("Softmax", [sums], graph.output, axis=1)


def _link(graph: _Graph, link: Link, sums: str) -> None:
    match link:
        case "sigmoid":
            graph.add("Sigmoid", [sums], graph.output)
        case "exp":
            graph.add("Exp", [sums], graph.output)
        case "signed square":
            graph.add("Mul", [sums, graph.add("Abs", [sums], "absolute")], graph.output)
        case "identity":
            graph.add("Identity", [sums], graph.output)
        case "softmax":
            graph.add("Softmax", [sums], graph.output, axis=1)
