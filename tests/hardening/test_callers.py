"""Honest callers as detectors are fitted on them: drawn alike for all, from all kinds of shift."""

from __future__ import annotations

import numpy as np
import pytest

from garrison.guard.detectors.base import Seen
from garrison.guard.detectors.near_duplicates import NearDuplicates
from garrison.guard.detectors.steps import TERMS
from garrison.hardening.callers import ROWS, columns_of, draw, seen_as, shares_of, unit_of
from garrison.hardening.shifts import PLAIN
from garrison.types import FloatArray

COUNT = 600


def pool(projection: FloatArray) -> Seen:
    top = np.r_[np.zeros(COUNT - 30, np.intp), np.ones(30, np.intp)]
    one = np.ones(COUNT, np.float32)
    return Seen(np.zeros(COUNT, np.intp), np.arange(COUNT), projection, one, one, top)


def pools() -> dict[str, Seen]:
    rng = np.random.default_rng(0)
    return {
        "moved": pool(rng.normal(size=(COUNT, 4)).astype(np.float32)),
        PLAIN: pool(np.full((COUNT, 4), -3.0, np.float32)),
    }


def test_every_kind_and_every_class_with_enough_rows_has_its_callers() -> None:
    drawn = draw(pools(), np.random.default_rng(0), each=3, fewest_of_a_class=100)
    assert list(drawn.mixed) == [PLAIN, "moved"], "the plain ones first"
    assert all(len(callers) == 3 for callers in drawn.mixed.values())
    rows = [rows for callers in drawn.mixed.values() for rows in callers]
    assert all(len(set(one.tolist())) == ROWS for one in rows), "no row twice"
    assert [kind for kind, _ in drawn.of_a_class] == [PLAIN, "moved"], "the class of 30 rows has none"
    assert all((one < COUNT - 30).all() for _, one in drawn.of_a_class)
    again = draw(pools(), np.random.default_rng(0), each=3, fewest_of_a_class=20)
    np.testing.assert_array_equal(again.mixed[PLAIN][0], drawn.mixed[PLAIN][0])
    assert len(again.of_a_class) == 4


def test_honest_projections_fit_into_whole_numbers_with_a_margin() -> None:
    found = pools()
    largest = max(float(np.abs(one.projection).max()) for one in found.values())
    assert 0.7 * 127 < largest / unit_of(found) < 0.9 * 127
    assert unit_of({PLAIN: pool(np.zeros((COUNT, 4), np.float32))}) > 0, "nothing to measure"
    small = unit_of({kind: pool(np.float32(1e-6) * one.projection) for kind, one in found.items()})
    assert small == pytest.approx(1e-6 * unit_of(found), rel=1e-3), "rows of any scale"


def test_a_detector_begins_with_nothing() -> None:
    detector = NearDuplicates(threshold=1.0, unit=0.1, weights=(0.0,) * TERMS)
    columns, shares = columns_of(detector, 4, 3), shares_of(detector, 4)
    assert columns["rows"].shape == (3, 4, detector.slots)
    assert np.isinf(columns["square"]).all()
    assert shares["salt"].shape == (1,)
    seen = seen_as(np.array([2]), np.array([0]), np.ones((1, 4)))
    assert seen.projection.dtype == np.float32
    np.testing.assert_array_equal(detector.weigh(seen, columns, shares), [0.0])
