from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from garrison.guard.base import Noise
from garrison.guard.keyed import PICKS, KeyedTable
from garrison.guard.row_hash import LONG
from garrison.types import Array, FloatArray

KEY = bytes(range(32))


def noise(table: KeyedTable, x: Array, rows: npt.NDArray[np.intp]) -> FloatArray:
    """All that a row gets, in one vector."""
    found = table({"x": x}, rows)
    picks = np.array([one.table[list(one.picks)] for one in found])
    assert picks.shape == (len(rows), PICKS, 4)
    return np.concatenate([picks.reshape(len(rows), -1), [[one.uniform] for one in found]], axis=1)


def draw(rng: np.random.Generator, rows: int) -> FloatArray:
    return rng.normal(size=(rows, 4))


def test_same_input_same_noise_in_any_batch_and_after_a_restart() -> None:
    x = np.random.default_rng(0).random((50, 8), dtype=np.float32)
    first = noise(KeyedTable(KEY, "a", draw), x, np.arange(50))
    again = noise(KeyedTable(KEY, "a", draw), x[::-1].copy(), np.arange(50))[::-1]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(noise(KeyedTable(KEY, "a", draw), x, np.array([7])), first[[7]])


@pytest.mark.parametrize(
    ("size", "picks", "uniform"),
    [
        (48, (4047, 1190, 919, 3394), 14092360887749818368),
        (LONG - 4, (3070, 3725, 1105, 895), 6884931682145593344),
        (LONG, (2624, 2197, 3256, 199), 5552747586591437824),
        (4 * 150_528, (301, 3047, 1571, 829), 13665041326780618752),
    ],
)
def test_noise_is_what_it_was(size: int, picks: tuple[int, ...], uniform: int) -> None:
    """Whoever changes this gives every misinformed input another answer than before: to ask again after an update tells which those are."""
    inputs: dict[str, Array] = {
        "b": np.linspace(-1, 1, size // 4, dtype=np.float32)[np.newaxis],
        "a": np.arange(5)[np.newaxis],
    }
    table = KeyedTable(KEY, "a", draw)
    for found in (table.noise(inputs, 0), *table(inputs, slice(None))):
        assert (found.picks, found.uniform) == (picks, uniform * 2.0**-64)


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


@pytest.mark.parametrize("odd", [0.5, -0.0, np.nan])
def test_one_row_gets_what_it_gets_among_many(odd: float) -> None:
    rng, table = np.random.default_rng(0), KeyedTable(KEY, "a", draw)
    inputs: dict[str, Array] = {"b": rng.random((20, 3, 2), dtype=np.float32), "a": rng.integers(0, 9, (20, 4))}
    inputs["b"][7, 1, 1] = odd

    def plain(found: list[Noise]) -> list[tuple[tuple[int, ...], float]]:
        return [(one.picks, one.uniform) for one in found]

    alone = plain([table.noise(inputs, row) for row in range(20)])
    assert plain(table(inputs, slice(None))) == alone
    assert plain(table(inputs, np.array([7, 3]))) == [alone[7], alone[3]]
    assert len(set(alone)) == 20


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        KeyedTable(b"short", "a", draw)
