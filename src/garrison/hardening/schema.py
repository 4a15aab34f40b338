"""The parameters of the defense `schema`, from honest rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from garrison.guard.defenses.schema import ANY, MOST_VALUES, Category
from garrison.types import Array

LEAST_ROWS_A_VALUE = 5
"""A feature with a value that came more seldom is no category: others may be missing from the data altogether."""


def learned(inputs: Mapping[str, Array], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that honest rows show, where `given` does not say otherwise.

    A feature is whole where every value is; it is a category where it takes at most `MOST_VALUES` values and each came often enough.

    Args:
        inputs: by name, in the model's order, each (rows, ...), at least one row.
        given: parameters that the owner chose.
    """
    whole: list[int] = []
    categories: list[Category] = []
    missing, first = np.zeros(len(next(iter(inputs.values()))), dtype=np.int64), 0
    for x in inputs.values():
        flat = x.reshape(len(x), -1).astype(np.float64)
        lost = np.isnan(flat)
        missing += lost.sum(axis=1)
        for column in range(flat.shape[1]):
            values, counts = np.unique(flat[~lost[:, column], column], return_counts=True)
            if x.dtype.kind == "f" and len(values) and (values == np.floor(values)).all():
                whole.append(first + column)
            if 1 <= len(values) <= MOST_VALUES and counts.min() >= LEAST_ROWS_A_VALUE:
                categories.append(Category(first + column, tuple(values.tolist())))
        first += flat.shape[1]
    found = {
        "whole": tuple(whole),
        "categories": msgspec.to_builtins(tuple(categories)),
        "most_missing": int(missing.max()) if len(missing) else ANY,
    }
    return found | dict(given)
