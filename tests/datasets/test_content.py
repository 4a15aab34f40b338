from __future__ import annotations

import numpy as np
import pytest

from garrison.datasets.content import Content, fifths, mixed_order, rows_of, take


@pytest.mark.parametrize("count", [1, 4, 5, 1000, 4601])
def test_the_splits_share_no_row_and_miss_none(count: int) -> None:
    parts = {split: rows_of(split, count) for split in ("train", "test", "all")}
    assert {split: len(rows) for split, rows in parts.items()} == dict(fifths(count))
    assert sorted([*parts["train"], *parts["test"]]) == parts["all"].tolist() == list(range(count))


def test_the_test_rows_are_drawn_from_everywhere() -> None:
    test = rows_of("test", 10_000)
    assert np.histogram(test, 10, (0, 10_000))[0].min() > 150
    assert np.bincount(test % 5).min() > 320  # no rhythm that a periodic source could fall in with


def test_the_order_is_the_same_for_ever() -> None:
    assert mixed_order(12).tolist() == [2, 4, 6, 8, 5, 10, 1, 11, 7, 0, 9, 3]


def test_taking_a_split_keeps_rows_together() -> None:
    content = Content(np.arange(10)[:, None], np.arange(10), ("a",), ("f",), {"f": ("x",)})
    part = take(content, "test")
    assert part.y is not None
    assert part.x[:, 0].tolist() == part.y.tolist() == rows_of("test", 10).tolist()
    assert (part.labels, part.features, part.categories) == (("a",), ("f",), {"f": ("x",)})
    assert take(Content(np.zeros((5, 1)), None), "train").y is None
