"""What a reader makes of a set's files, and the split rule that sets without an official one share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from garrison.types import Array

ReadFile = Callable[[str], bytes]
TEST_EVERY = 5


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """The arrays of one split; the fields mean what they mean in `Dataset`."""

    x: Array
    y: Array | None
    labels: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


Read = Callable[[ReadFile, str], Content]
"""From a function that gives a file's checked bytes, and a split's name."""


def rows_of(split: str, count: int) -> npt.NDArray[np.intp]:
    """The rows of a split where the set has no official one: every fifth row is a test row, so that sets which are sorted by class
    keep their class balance."""
    index = np.arange(count)
    if split == "all":
        return index
    is_test = index % TEST_EVERY == TEST_EVERY - 1
    return np.flatnonzero(is_test if split == "test" else ~is_test)


def fifths(count: int) -> Mapping[str, int]:
    """The splits of a set of `count` rows without official ones: every fifth row is a test row."""
    test = count // TEST_EVERY
    return {"train": count - test, "test": test, "all": count}


def take(content: Content, split: str) -> Content:
    """`rows_of` applied to the arrays of a whole set."""
    rows = rows_of(split, content.x.shape[0])
    y: npt.NDArray[Any] | None = None if content.y is None else content.y[rows]
    return Content(content.x[rows], y, content.labels, content.features, content.categories)
