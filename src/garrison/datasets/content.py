"""What a reader makes of a set's files, and the split rule that sets without an official one share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from garrison.types import Array

ReadFile = Callable[[str], bytes]
TEST_SHARE = 5
"""One row in this many is a test row."""


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


def mixed_order(count: int) -> npt.NDArray[np.intp]:
    """A fixed permutation that looks random, the same for every version of numpy (indices sorted by splitmix64)."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")


def rows_of(split: str, count: int) -> npt.NDArray[np.intp]:
    """The rows of a split where the set has no official one: a fifth of them, drawn once and for all, are the test rows."""
    drawn = mixed_order(count)
    if split != "all":
        drawn = drawn[: count // TEST_SHARE] if split == "test" else drawn[count // TEST_SHARE :]
    return np.sort(drawn)


def fifths(count: int) -> Mapping[str, int]:
    """The splits of a set of `count` rows without official ones: a fifth of them are test rows."""
    test = count // TEST_SHARE
    return {"train": count - test, "test": test, "all": count}


def take(content: Content, split: str) -> Content:
    """`rows_of` applied to the arrays of a whole set."""
    rows = rows_of(split, content.x.shape[0])
    y: npt.NDArray[Any] | None = None if content.y is None else content.y[rows]
    return Content(content.x[rows], y, content.labels, content.features, content.categories)
