"""Rows by caller, and sums from row to row, as by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from garrison.guard.detectors.turns import order_of, sums_after


@pytest.mark.parametrize(
    "keys", [[7], [3, 1, 2], [5, 5, 5], [4, 2, 4, 2], np.random.default_rng(0).integers(0, 9, 60).tolist()]
)
def test_rows_are_found_by_key_in_turn(keys: list[int]) -> None:
    order = order_of(np.array(keys))
    assert sorted(order.keys.tolist()) == sorted(set(keys))
    assert order.keys[order.number].tolist() == keys
    assert order.turn.tolist() == [keys[:row].count(key) for row, key in enumerate(keys)]
    assert order.turns == max(Counter(keys).values())
    assert order.counts.tolist() == [keys.count(key) for key in order.keys.tolist()]
    assert (np.diff(order.counts) >= 0).all()
    by_key = [[row for row, key in enumerate(keys) if key == one] for one in order.keys.tolist()]
    assert order.sorted.tolist() == [row for rows in by_key for row in rows]
    told = [(order.sorted[part].reshape(-1, count).tolist(), count) for part, count in order.groups()]
    assert [rows for group, _ in told for rows in group] == by_key
    assert [count for _, count in told] == sorted(set(order.counts.tolist()))


def test_sums_never_fall_below_0_and_go_on_from_row_to_row() -> None:
    rng = np.random.default_rng(1)
    keys, more, before = rng.integers(0, 5, 80), rng.normal(size=(80, 2)), rng.random((5, 2))
    order = order_of(keys)
    path = sums_after(before[order.keys], more, order)
    by_hand = before.copy()
    for row, key in enumerate(keys.tolist()):
        by_hand[key] = np.maximum(0.0, by_hand[key] + more[row])
        np.testing.assert_allclose(path[order.number[row], order.turn[row]], by_hand[key], atol=1e-12)
    np.testing.assert_allclose(path[:, -1], by_hand[order.keys], atol=1e-12)
