"""Schema: what of the range makes sense: whole numbers, known categories, and not too much missing (OWASP ML01, beside `bounds`)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import msgspec
import numpy as np

from garrison.errors import GuardError
from garrison.guard.base import Marks, RowDefense, Settings, View
from garrison.types import Array, ModelFacts, Phase

MOST_VALUES = 64
"""A feature with more different values is no category."""
ANY = -1


class Category(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A feature that takes a few values.

    Attributes:
        feature: its number, from 0, in C order; over all inputs of the model, in their order.
        values: at least one, at most `MOST_VALUES`, finite, each once.
    """

    feature: int
    values: tuple[float, ...]


class Schema(RowDefense, frozen=True):
    """Refuse rows with a value that this feature never takes, or with more missing values than honest rows have.

    Ranges, and which features may be missing at all, stand in the model's inputs and are checked by `bounds`, which belongs into the same chain.

    Does not check: whether values make sense together.

    Attributes:
        whole: numbers of the features that hold whole numbers.
        categories: features that take a few values.
        most_missing: missing values (NaN) that a row may have, over all its features; -1 for any number.
    """

    name: ClassVar[str] = "schema"
    phase: ClassVar[Phase] = Phase.ADMIT
    reason: ClassVar[str] = "request.input"

    whole: tuple[int, ...] = ()
    categories: tuple[Category, ...] = ()
    most_missing: int = ANY

    def __post_init__(self) -> None:
        named = [category.feature for category in self.categories]
        if len(set(named)) != len(named) or len(set(self.whole)) != len(self.whole):
            raise ValueError("schema: a feature stands twice")
        if min((*named, *self.whole, 0)) < 0:
            raise ValueError("schema: features are numbered from 0")
        if self.most_missing < ANY:
            raise ValueError(f"schema.most_missing must be at least {ANY}, found {self.most_missing}")
        for category in self.categories:
            _check_values(category)

    def check(self, facts: ModelFacts) -> None:
        features = sum(math.prod(spec.shape) for spec in facts.inputs)
        beyond = [f for f in (*self.whole, *(c.feature for c in self.categories)) if f >= features]
        if beyond:
            raise GuardError(f"schema names feature {beyond[0]}; the model takes {features}, numbered from 0")

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        bad, missing, first = None, None, 0
        for spec in view.facts.inputs:
            width = math.prod(spec.shape)
            x = xp.reshape(view.batch.inputs[spec.name], (-1, width))
            inside = range(first, first + width)
            first += width
            for wrong in self._wrong(xp, x, inside, spec.dtype):
                bad = wrong if bad is None else bad | wrong
            if self.most_missing != ANY and spec.dtype.kind == "f":
                count = xp.sum(xp.astype(x != x, xp.int64), axis=1)  # NaN is not itself
                missing = count if missing is None else missing + count
        if missing is not None:
            many = missing > self.most_missing
            bad = many if bad is None else bad | many
        return Marks() if bad is None else Marks(refuse=bad)

    def _wrong(self, xp: Any, x: Any, inside: range, dtype: np.dtype[Any]) -> list[Any]:
        """Rows of one input with a fraction, or an unknown value; none where nothing is said of its features. A missing value is neither."""
        found = []
        whole = [feature - inside.start for feature in self.whole if feature in inside]
        if whole and dtype.kind == "f":
            columns = xp.take(x, xp.asarray(np.array(whole)), axis=1)
            found.append(xp.any(columns - xp.floor(columns) > 0, axis=1))  # NaN is not above 0
        categories = [category for category in self.categories if category.feature in inside]
        if categories:
            columns = xp.take(x, xp.asarray(np.array([c.feature - inside.start for c in categories])), axis=1)
            known = columns != columns
            for values in _table(categories, dtype):
                known = known | (columns == xp.asarray(values))
            found.append(xp.any(~known, axis=1))
        return found

    def detail(self, facts: ModelFacts) -> str:  # noqa: ARG002
        return "a value is no whole number or none of the values that its feature takes, or too many values are missing"


def _check_values(category: Category) -> None:
    values = category.values
    if not 1 <= len(values) <= MOST_VALUES or len(set(values)) != len(values) or not all(map(math.isfinite, values)):
        raise ValueError(
            f"schema: feature {category.feature}: expected 1 to {MOST_VALUES} finite values, each once, found {len(values)}"
        )


def _table(categories: list[Category], dtype: np.dtype[Any]) -> Array:
    """Allowed values, shape (most values, features); a feature with fewer repeats its first. In the tensor's own type, as clients send them."""
    most = max(len(category.values) for category in categories)
    rows = [(*c.values, *(c.values[:1] * (most - len(c.values)))) for c in categories]
    found: Array = np.array(rows, dtype=np.float64).astype(dtype).T
    return np.ascontiguousarray(found)
