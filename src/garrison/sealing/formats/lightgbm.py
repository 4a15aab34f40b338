"""Reads the text files of LightGBM: `booster.save_model("model.txt")`.

The file is read here, checked, and made into a graph. LightGBM itself is asked about the owner's rows, so that both can be compared; its
loader gets a text that is written anew (`garrison.sealing.formats.lightgbm_text`). Not read: linear trees, pickles.

LightGBM compares in double precision. The graph takes single-precision features unless `double` is asked for; its thresholds are rounded so
that every single-precision value goes where LightGBM sends it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from garrison.errors import MissingExtraError, ModelFileError, UnsupportedModelError
from garrison.sealing.formats.lightgbm_text import Block, written
from garrison.sealing.formats.source import Source, bounded_bytes
from garrison.sealing.formats.trees import INPUT, Ensemble, Index, Link, Tree, declared, to_onnx
from garrison.types import Array

try:
    import lightgbm
except ImportError as error:
    raise MissingExtraError("lightgbm", "lightgbm") from error

VERSIONS = frozenset({"v3", "v4"})
_LINKS: dict[str, Link] = {
    **dict.fromkeys(("regression", "regression_l1", "huber", "fair", "quantile", "mape"), "identity"),
    **dict.fromkeys(("lambdarank", "rank_xendcg", "custom"), "identity"),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), "exp"),
    **dict.fromkeys(("binary", "cross_entropy", "multiclassova"), "sigmoid"),
    "multiclass": "softmax",
}
_CLASSES = frozenset({"binary", "multiclass"})
_CATEGORICAL, _DEFAULT_LEFT, _LARGEST_KIND = 1, 2, 15
_MISSING_ZERO, _MISSING_NAN = 1, 2
_WORD_BITS = 32
_BLOCK = re.compile(r"^Tree=\d+$", re.MULTILINE)
_SLOPE = re.compile(r"sigmoid:([0-9.eE+-]+)")


def read(path: Path, *, double: bool = False) -> Source:
    """A boosted model of trees, or a random forest.

    Args:
        double: take and compare features in double precision.

    Raises:
        ModelFileError: not a model file of LightGBM.
        UnsupportedModelError: an objective or a kind of tree that is not converted.
    """
    data = bounded_bytes(path)
    header, fields = _parts(data, str(path))
    ensemble, classes, text = _ensemble(header, fields, str(path))
    return Source(
        model=to_onnx(ensemble, str(path), classes=classes, double=double),
        format="lightgbm",
        sha256=hashlib.sha256(data).hexdigest(),
        declared=declared(ensemble, classes=classes),
        reference=_reference(text, path, two=classes and len(ensemble.base) == 1),
        packages=("lightgbm", "onnx"),
        rows_off=0.0,
    )


def _parts(data: bytes, name: str) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The header's fields, and those of each tree."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{name}: not a text file of LightGBM") from error
    body, end, _ = text.partition("\nend of trees")
    head, *blocks = _BLOCK.split(body)
    if not head.startswith("tree\n") or not end or not blocks:
        raise ModelFileError(f"{name}: not a model file of LightGBM (save_model), or one without trees")
    return _fields(head, name), [_fields(block, name) for block in blocks]


def _fields(text: str, name: str) -> dict[str, str]:
    """Lines `name=value`; a name alone is a switch."""
    found: dict[str, str] = {}
    for line in filter(None, text.split("\n")):
        key, _, value = line.rstrip("\r").partition("=")
        if key in found:
            raise ModelFileError(f"{name}: the field {key[:40]!r} stands twice")
        found[key] = value
    return found


def _ensemble(
    header: dict[str, str], blocks: list[dict[str, str]], name: str
) -> tuple[Ensemble, bool, Callable[[], str]]:
    """The trees, whether they tell classes apart, and what writes them anew for LightGBM."""
    if header.get("version") not in VERSIONS:
        raise UnsupportedModelError(f"{name}: expected a file of version {' or '.join(sorted(VERSIONS))}")
    words = (header.get("objective") or "custom").split(" ")
    objective = words[0]
    if objective not in _LINKS:
        raise UnsupportedModelError(f"{name}: the objective {objective[:40]!r} is not converted")
    try:
        targets = int(header["num_tree_per_iteration"])
        features = int(header["max_feature_idx"]) + 1
        sizes = len(header["tree_sizes"].split())
        slope = _SLOPE.search(header.get("objective", ""))
        slope_value = float(slope[1]) if slope is not None else 1.0
    except (KeyError, ValueError) as error:
        raise ModelFileError(f"{name}: its sizes cannot be read") from error
    one = objective not in {"multiclass", "multiclassova", "custom"}
    whole = targets >= 1 and features >= 1 and len(blocks) == sizes and len(blocks) % targets == 0
    if not whole or (one and targets != 1) or not np.isfinite(slope_value):
        raise ModelFileError(f"{name}: its parts contradict each other")
    share = targets / len(blocks) if "average_output" in header else 1.0
    trees, texts, missing = [], [], _Missing(features, name)
    for number, block in enumerate(blocks):
        tree, again = _tree(block, number % targets, share, missing, name)
        trees.append(tree)
        texts.append(again)
    link: Link = "signed square" if objective == "regression" and "sqrt" in words[1:] else _LINKS[objective]
    classes = objective in _CLASSES
    text = partial(
        written,
        texts,
        version=header["version"],
        targets=targets,
        features=features,
        objective=_objective(words, targets, slope_value),
        average="average_output" in header,
    )
    ensemble = Ensemble(
        trees=trees,
        features=features,
        base=np.zeros(targets),
        strict=False,
        link=link,
        slope=slope_value if objective in {"binary", "multiclassova"} else 1.0,
        zero_is_missing=missing.zeros(),
        negative_is_unknown=False,
    )
    return ensemble, classes, text


def _objective(words: list[str], targets: int, slope: float) -> str:
    """With the settings that answers depend on."""
    match words[0]:
        case "custom":
            return ""
        case "multiclass":
            return f"multiclass num_class:{targets}"
        case "multiclassova":
            return f"multiclassova num_class:{targets} sigmoid:{slope!r}"
        case "binary":
            return f"binary sigmoid:{slope!r}"
        case "quantile":
            return "quantile alpha:0.5"
        case "regression" if "sqrt" in words[1:]:
            return "regression sqrt"
    return words[0]


class _Missing:
    """What counts as missing, feature by feature; LightGBM decides it once for each."""

    def __init__(self, features: int, name: str) -> None:
        self._kinds: dict[int, int] = {}
        self._features = features
        self._name = name

    def note(self, feature: Index, kinds: Index) -> None:
        """Remember the kinds of some splits.

        Raises:
            UnsupportedModelError: zeros of one feature are missing at one split and a number at another.
        """
        for number, kind in zip(feature.tolist(), kinds.tolist(), strict=True):
            if self._kinds.setdefault(number, kind) != kind and _MISSING_ZERO in {kind, self._kinds[number]}:
                raise UnsupportedModelError(
                    f"{self._name}: zeros of feature {number} are missing at one split, and not at another"
                )

    def zeros(self) -> tuple[int, ...]:
        return tuple(sorted(n for n, kind in self._kinds.items() if kind == _MISSING_ZERO and 0 <= n < self._features))


def _tree(block: dict[str, str], target: int, share: float, missing: _Missing, name: str) -> tuple[Tree, Block]:
    if block.get("is_linear", "0") != "0":
        raise UnsupportedModelError(f"{name}: linear trees are not converted")
    try:
        leaves = int(block["num_leaves"])
        splits = leaves - 1
        value = _numbers(block, "leaf_value", np.float64, leaves)
        left, right, feature, kinds = (
            _numbers(block, key, np.int64, splits)
            for key in ("left_child", "right_child", "split_feature", "decision_type")
        )
        threshold = _numbers(block, "threshold", np.float64, splits)
        members, sets = _members(block, kinds, threshold)
    except (KeyError, ValueError, OverflowError) as error:
        raise ModelFileError(f"{name}: a tree cannot be read: {str(error)[:100]}") from error
    if bool(((left < -leaves) | (right < -leaves) | (kinds < 0) | (kinds > _LARGEST_KIND)).any()):
        raise ModelFileError(f"{name}: its nodes do not form decision trees; the file is damaged or forged")
    numerical = (kinds & _CATEGORICAL) == 0
    missing.note(feature[numerical], (kinds[numerical] >> 2) & 3)
    nothing = np.full(leaves, -1, dtype=np.int64)
    numbers = {"split_feature": feature, "decision_type": kinds, "left_child": left, "right_child": right}
    again = Block(numbers, threshold.tolist(), value.tolist(), *sets)
    tree = Tree(
        feature=np.concatenate([feature, np.zeros(leaves, dtype=np.int64)]),
        threshold=np.concatenate([threshold, np.zeros(leaves)]),
        yes=np.concatenate([_child(left, splits), nothing]),
        no=np.concatenate([_child(right, splits), nothing]),
        missing_yes=np.concatenate([_missing_yes(kinds, threshold), np.zeros(leaves, dtype=np.bool_)]),
        value=np.concatenate([np.zeros(splits), value * share]),
        target=target,
        members=members,
    )
    return tree, again


def _child(child: Index, splits: int) -> Index:
    """Splits come first, leaves after them; LightGBM numbers leaves by their complement."""
    return np.where(child >= 0, child, splits + ~child)


def _missing_yes(kinds: Index, threshold: Any) -> Any:
    """A missing value goes the default way, counts as 0 where the feature had none in training, and is no member of categories."""
    default = (kinds & _DEFAULT_LEFT) != 0
    as_zero = np.where(((kinds >> 2) & 3) == 0, threshold >= 0.0, default)
    return np.where((kinds & _CATEGORICAL) != 0, False, as_zero)  # noqa: FBT003  numpy's own signature


def _numbers(block: dict[str, str], key: str, dtype: Any, count: int) -> Any:
    """Raises `ValueError` or `KeyError` where they cannot be read, or are not as many."""
    words = block[key].split() if count else []
    found = np.array([float(w) for w in words] if dtype is np.float64 else [int(w) for w in words], dtype=dtype)
    if len(found) != count:
        raise ValueError(f"{key} should have {count} entries")
    return found


def _members(
    block: dict[str, str], kinds: Index, threshold: Any
) -> tuple[dict[int, tuple[int, ...]], tuple[list[int], list[int]]]:
    """By split, the categories that go left: bit sets of 32-bit words, found by the number that stands as threshold. And these sets."""
    splits = np.flatnonzero((kinds & _CATEGORICAL) != 0)
    if not len(splits):
        return {}, ([], [])
    sets = int(block["num_cat"])
    if sets < 1:
        raise ValueError("num_cat")
    bounds = _numbers(block, "cat_boundaries", np.int64, sets + 1)
    if bounds[0] != 0 or bool((np.diff(bounds) < 1).any()):
        raise ValueError("cat_boundaries")
    words = _numbers(block, "cat_threshold", np.int64, int(bounds[-1]))
    if bool(((words < 0) | (words >= 2**_WORD_BITS)).any()):
        raise ValueError("cat_threshold")
    found = {}
    for node in splits.tolist():
        number = threshold[node]
        if not (0 <= number < sets and number == int(number)):
            raise ValueError("threshold of a categorical split")
        some = words[bounds[int(number)] : bounds[int(number) + 1]].tolist()
        members = tuple(
            _WORD_BITS * i + bit for i, word in enumerate(some) for bit in range(_WORD_BITS) if word >> bit & 1
        )
        if not members:
            raise ValueError("a categorical split without categories")
        found[node] = members
    return found, (bounds.tolist(), words.tolist())


def _reference(text: Callable[[], str], path: Path, *, two: bool) -> Any:
    """The original's answers, from LightGBM itself."""

    def reference(rows: dict[str, Array]) -> Array:
        try:
            booster = lightgbm.Booster(model_str=text())
            found = np.asarray(booster.predict(rows[INPUT], num_threads=1), dtype=np.float64)
        except lightgbm.basic.LightGBMError as error:
            raise ModelFileError(f"{path}: LightGBM cannot use it: {str(error)[:200]}") from error
        answers: Array = found.reshape(len(found), -1)
        return np.hstack([1.0 - answers, answers]) if two else answers

    return reference
