from __future__ import annotations

import numpy as np
import pytest

from garrison.errors import CalibrationError
from garrison.hardening.outliers import IMAGE_KINDS, Kind, outlier_set

from .conftest import Digits


@pytest.mark.parametrize("kind", IMAGE_KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("size", [(28, 28), (16, 40)])
def test_every_kind_draws_different_pictures_in_range(kind: Kind, size: tuple[int, int]) -> None:
    drawn = kind(np.random.default_rng(0), 30, *size)
    assert drawn.shape == (30, *size)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert len(np.unique(drawn.reshape(30, -1), axis=0)) > 20


def test_the_same_seed_gives_the_same_set(digits: Digits) -> None:
    first, second = (outlier_set((1, 16, 16), 200, 5, benign=digits.x) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, outlier_set((1, 16, 16), 200, 6, benign=digits.x))


@pytest.mark.parametrize("n", [1, 7, 200])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 20, 24)])
def test_as_many_as_asked_stretched_to_the_range(n: int, shape: tuple[int, ...]) -> None:
    found = outlier_set(shape, n, 0, low=-1.0, high=3.0)
    assert found.shape == (n, *shape)
    assert found.dtype == np.float32
    assert found.min() >= -1
    assert found.max() <= 3


def test_photographs_and_own_images_are_mixed_in(digits: Digits) -> None:
    white = np.ones((3, 1, 16, 16), dtype=np.float32)
    without, mixed = (outlier_set((1, 16, 16), 400, 0, photographs=given) for given in (None, white))
    flat = [(np.ptp(x.reshape(400, -1), axis=1) == 0).sum() for x in (without, mixed)]
    assert flat[1] > flat[0] + 20
    mixed = outlier_set((1, 16, 16), 400, 0, benign=digits.x)
    own = {row.tobytes() for row in digits.x}
    assert not any(row.tobytes() in own for row in mixed)


def test_tables_are_made_from_own_rows() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=500)
    benign = np.stack([a, 2 * a], axis=1).astype(np.float32)
    found = outlier_set((2,), 300, 0, benign=benign)
    assert found.shape == (300, 2)
    assert np.corrcoef(benign.T).min() > 0.99
    assert np.corrcoef(found.T).min() < 0.95  # the rows no longer hang together


def test_a_table_needs_own_rows() -> None:
    with pytest.raises(CalibrationError, match="your own rows"):
        outlier_set((4,), 10)
