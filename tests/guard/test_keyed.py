from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from garrison.guard.keyed import PICKS, KeyedTable
from garrison.types import Array, FloatArray

KEY = bytes(range(32))


def noise(table: KeyedTable, x: Array, rows: npt.NDArray[np.intp]) -> FloatArray:
    """All that a row gets, in one vector."""
    found = table({"x": x}, rows)
    assert found.picks.shape == (len(rows), PICKS, 4)
    return np.concatenate([found.picks.reshape(len(rows), -1), found.uniform[:, np.newaxis]], axis=1)


def draw(rng: np.random.Generator, rows: int) -> FloatArray:
    return rng.normal(size=(rows, 4))


def test_same_input_same_noise_in_any_batch_and_after_a_restart() -> None:
    x = np.random.default_rng(0).random((50, 8), dtype=np.float32)
    first = noise(KeyedTable(KEY, "a", draw), x, np.arange(50))
    again = noise(KeyedTable(KEY, "a", draw), x[::-1].copy(), np.arange(50))[::-1]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(noise(KeyedTable(KEY, "a", draw), x, np.array([7])), first[[7]])


def test_another_key_or_label_or_bit_gives_other_noise() -> None:
    x = np.random.default_rng(0).random((50, 8), dtype=np.float32)
    first = noise(KeyedTable(KEY, "a", draw), x, np.arange(50))
    for other in (KeyedTable(bytes(32), "a", draw), KeyedTable(KEY, "b", draw)):
        assert not (noise(other, x, np.arange(50)) == first).all(axis=1).any()
    changed = x.copy()
    changed[:, 0] = np.nextafter(changed[:, 0], 1)
    assert (noise(KeyedTable(KEY, "a", draw), changed, np.arange(50)) == first).all(axis=1).mean() < 0.1


def test_equal_values_in_other_bits_are_the_same_input() -> None:
    table = KeyedTable(KEY, "a", draw)
    zeros = np.array([[0.0, 1.0], [-0.0, 1.0]], np.float32)
    a, b = noise(table, zeros, np.arange(2))
    np.testing.assert_array_equal(a, b)
    quiet, other = np.array([[0x7FC00000], [0x7FC00001]], np.uint32).view(np.float32)
    a, b = noise(table, np.stack([quiet, other]), np.arange(2))
    np.testing.assert_array_equal(a, b)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        KeyedTable(b"short", "a", draw)
