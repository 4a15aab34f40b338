"""Rows that an attacker draws stay in the service's range, in its dtype."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.attacks.services import facts

from garrison.attacks.draws import jittered, uniform_rows, within
from garrison.attacks.oracle import OracleFacts


def narrow(dtype: type, low: float, high: float) -> OracleFacts:
    own = facts((5,))
    return dataclasses.replace(own, dtype=np.dtype(dtype), low=np.full(5, low, dtype), high=np.full(5, high, dtype))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.int64])
def test_rows_keep_range_and_type(dtype: type) -> None:
    service = narrow(dtype, 0, 3)
    rng = np.random.default_rng(0)
    even = uniform_rows(rng, 2000, service)
    for rows in (even, jittered(rng, even, service, 0.5), within(rng.normal(size=(500, 5)) * 9, service)):
        assert rows.dtype == dtype
        assert rows.min() >= 0
        assert rows.max() <= 3
    if service.dtype.kind in "iu":
        assert np.bincount(even.ravel().astype(np.int64)).min() > 2000  # both ends as often as the middle


def test_rounding_to_a_narrower_type_does_not_leave_the_range() -> None:
    """0.1 in single precision lies above 0.1 in double precision."""
    service = dataclasses.replace(narrow(np.float32, 0.0, 1.0), high=np.full(5, np.float32(0.1)))
    assert (within(np.full((1, 5), 0.1), service) <= service.high).all()
    assert (within(np.full((1, 5), 7.0), service) <= service.high).all()


def test_whole_numbers_are_rounded_and_what_is_missing_stays_missing() -> None:
    assert within(np.array([[0.6, 1.4, 2.5, -9.0, 9.0]]), narrow(np.uint8, 0, 3)).tolist() == [[1, 1, 2, 0, 3]]
    assert np.isnan(within(np.array([[np.nan, 1, 1, 1, 1]]), narrow(np.float32, 0, 3))[0, 0])
