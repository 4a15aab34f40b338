"""A decision tree behind a service that answers at inner nodes, as BigML's did: a target to practise path finding on.

Where a row lacks the feature that a node tests, the service answers with that node's own distribution (of a regressor its mean) instead
of going on. Categories are tested one value at a time ("purpose is radio"), whatever number stands for them.

It ships so that users can see what such answers give away, and tests can compare what was stolen with the true tree. It is no model
server: nothing is guarded, signed or counted here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from garrison.attacks.oracle import Answers, OracleFacts
from garrison.types import Array, FloatArray


class Columns:
    """How a row's features become the columns that a tree is trained on: a number stays, a category becomes a column a value.

    Args:
        features: of a row.
        categories: by feature, the values that it takes.
    """

    def __init__(self, features: int, categories: Mapping[int, Sequence[float]] | None = None) -> None:
        self.categories = {i: tuple(float(v) for v in values) for i, values in (categories or {}).items()}
        columns: list[tuple[int, float]] = []
        for i in range(features):
            columns += [(i, value) for value in self.categories.get(i, (np.nan,))]
        self.feature: npt.NDArray[np.int64] = np.array([i for i, _ in columns])
        self.value: FloatArray = np.array([value for _, value in columns])

    def encoded(self, x: Array) -> FloatArray:
        """Shape (rows, columns): numbers as they are, 1 where a category has the column's value, else 0; NaN where it is missing."""
        raw = x.astype(np.float64)[:, self.feature]
        found: FloatArray = np.where(np.isnan(self.value) | np.isnan(raw), raw, (raw == self.value).astype(np.float64))
        return found


class TreeService:
    """An oracle over a trained tree of scikit-learn, a classifier's or a regressor's.

    Args:
        tree: the estimator, trained on `columns.encoded(rows)`.
        low, high: (features,), the stated range of each feature.
        columns: see `Columns`; None where the tree was trained on the rows themselves.
        missing: whether rows may lack features.
        decimals: of the answers; None for all.
    """

    def __init__(
        self,
        tree: Any,
        low: Array,
        high: Array,
        *,
        columns: Columns | None = None,
        missing: bool = True,
        decimals: int | None = None,
        dtype: type = np.float32,
    ) -> None:
        regression = not hasattr(tree, "classes_")
        self.tree = tree.tree_
        self.columns = columns or Columns(len(low))
        self._decimals = decimals
        value = self.tree.value[:, :, 0] if regression else self.tree.value[:, 0, :]
        self.answers: FloatArray = value if regression else value / value.sum(axis=1, keepdims=True)
        self.facts = OracleFacts(
            shape=(len(low),),
            dtype=np.dtype(dtype),
            low=np.asarray(low).astype(dtype),
            high=np.asarray(high).astype(dtype),
            classes=self.answers.shape[1],
            soft=not regression,
            regression=regression,
            missing=np.ones(len(low), dtype=np.bool_) if missing else None,
        )

    @property
    def leaves(self) -> int:
        return int((self.tree.children_left < 0).sum())

    def nodes(self, x: Array) -> npt.NDArray[np.int64]:
        """The node at which each row ends, shape (rows,)."""
        z = self.columns.encoded(x).astype(np.float32)  # as the tree compares
        at = np.zeros(len(x), dtype=np.int64)
        going = np.ones(len(x), dtype=np.bool_)
        while going.any():
            value = z[np.arange(len(x)), np.maximum(self.tree.feature[at], 0)]
            going &= (self.tree.children_left[at] >= 0) & ~np.isnan(value)
            below = value <= self.tree.threshold[at]
            further = np.where(below, self.tree.children_left[at], self.tree.children_right[at])
            at = np.where(going, further, at)
        return at

    def thresholds(self) -> dict[int, list[float]]:
        """By feature that is a number, the true thresholds, rising, each once."""
        found: dict[int, set[float]] = {}
        for column, threshold in zip(self.tree.feature, self.tree.threshold, strict=True):
            if column >= 0 and np.isnan(self.columns.value[column]):
                found.setdefault(int(self.columns.feature[column]), set()).add(float(threshold))
        return {i: sorted(values) for i, values in found.items()}

    def query(self, x: Array) -> Answers:
        given = self.answers[self.nodes(x)]
        if self._decimals is not None:
            given = np.round(given, self._decimals)
        nobody = np.zeros(len(x), dtype=np.bool_)
        if self.facts.regression:
            return Answers(np.zeros(len(x), dtype=np.int64), None, nobody, nobody, given)
        return Answers(given.argmax(axis=1).astype(np.int64), given.astype(np.float32), nobody, nobody)
