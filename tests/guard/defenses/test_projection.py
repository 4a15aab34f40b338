"""Long rows are averaged over groups first, the same in both forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from garrison.guard.defenses.projection import MOST_GROUPS, averaged, group_size, grouped, groups_of, matrix


@pytest.mark.parametrize("features", [1, 784, MOST_GROUPS, MOST_GROUPS + 1, 5003, 8192, 12289, 150_528])
def test_groups_are_few_and_full_where_they_can_be(features: int) -> None:
    size = group_size(features)
    least = math.ceil(features / MOST_GROUPS)
    assert least <= size < 2 * least
    assert groups_of([features]) == math.ceil(features / size) <= MOST_GROUPS
    whole = any(features % n == 0 for n in range(least, 2 * least))
    assert (features % size == 0) is whole
    x = np.random.default_rng(0).random((3, features), dtype=np.float32)
    found = averaged(x, features)
    assert found.shape == (3, groups_of([features]))
    np.testing.assert_allclose(found, grouped(np, x, features), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[:, 0], x[:, :size].mean(axis=1), rtol=1e-5)


def test_no_value_of_a_long_row_is_left_out() -> None:
    for features in (5003, 8192):
        at = np.append(np.arange(0, features, 17), features - 1)
        x = np.zeros((len(at), features), np.float32)
        x[np.arange(len(at)), at] = 1.0
        assert (averaged(x, features) != 0).sum(axis=1).tolist() == [1] * len(at)


def test_distances_of_averages_are_kept() -> None:
    features = 12_288
    x = averaged(np.random.default_rng(1).random((20, features), dtype=np.float32), features)
    found = x @ matrix(groups_of([features]), 256, 0)
    apart, seen = (np.linalg.norm(v[:10] - v[10:], axis=1) for v in (x, found))
    np.testing.assert_allclose(seen, apart, rtol=0.3)
