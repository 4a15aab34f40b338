from __future__ import annotations

from dataclasses import replace

import array_api_strict
import numpy as np
import pytest
from tests.guard.conftest import FEATURES, make_batch, make_facts, make_inputs

from garrison.guard.base import Code, View
from garrison.guard.defenses.bounds import LONG, Bounds, sums_within, within, within_one_range
from garrison.types import InputFacts


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.float32(-1e-6), np.float32(1.0001), 1e30])
@pytest.mark.parametrize("rows", [1, 2, 37])
def test_refuses_a_bad_value_at_every_position(bad: float, rows: int) -> None:
    for position in range(FEATURES):
        x = make_inputs(rows)
        x[rows // 2, position] = bad
        codes = Bounds()(View(make_batch(x, (1,) * rows), make_facts())).codes
        assert codes[rows // 2] == Code.REFUSE
        assert np.count_nonzero(codes) == 1


def test_every_position_of_an_image() -> None:
    low, high, missing = np.zeros(784, np.float32), np.ones(784, np.float32), np.zeros(784, np.bool_)
    x = np.full((784, 784), 0.5, np.float32)
    assert within(np, x, low, high, missing).all()
    x[np.arange(784), np.arange(784)] = np.nan
    assert not within(np, x, low, high, missing).any()


def test_the_borders_are_within() -> None:
    x = np.stack([np.zeros(FEATURES, np.float32), np.ones(FEATURES, np.float32), -np.zeros(FEATURES, np.float32)])
    assert not Bounds()(View(make_batch(x), make_facts())).codes.any()


def test_a_missing_value_is_admitted_only_where_it_may_be() -> None:
    x = make_inputs(2)
    x[0, 3] = np.nan
    assert not Bounds()(View(make_batch(x, (1, 1)), make_facts(missing=True))).codes.any()
    x[1, 3] = np.inf
    assert list(Bounds()(View(make_batch(x, (1, 1)), make_facts(missing=True))).codes) == [Code.KEEP, Code.REFUSE]


def test_its_arithmetic_is_plain_array_api() -> None:
    xp = array_api_strict
    x = xp.asarray([[0.5, 2.0], [0.5, 0.5]])
    got = within(xp, x, xp.asarray([0.0, 0.0]), xp.asarray([1.0, 1.0]), xp.asarray([False, False]))
    assert [bool(v) for v in got] == [False, True]


def long_input(
    low: float = 0.0, high: float = 1.0, dtype: str = "float32", *, features: int = LONG, missing: bool = False
) -> InputFacts:
    lows, highs = (np.full(features, end, dtype) for end in (low, high))
    return InputFacts("x", np.dtype(dtype), (features,), lows, highs, np.full(features, missing))


def test_a_long_row_is_refused_for_nan_at_every_position() -> None:
    x = np.full((512, LONG), 0.5, np.float32)
    rows = np.arange(512)
    low, high = np.float32(0), np.float32(1)
    assert within_one_range(np, x, low, high).all(), "control"
    for start in range(0, LONG, 512):
        x[rows, start + rows] = np.nan
        assert not within_one_range(np, x, low, high).any()
        x[rows, start + rows] = 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.float32(-1e-6), np.float32(1.0001), 3e38])
def test_a_long_row_is_judged_as_a_short_one(bad: float) -> None:
    spec = long_input()
    assert sums_within(spec)
    x = np.random.default_rng(0).random((6, LONG), dtype=np.float32)
    x[1, 0] = x[2, LONG // 2] = x[4, -1] = bad
    x[4, 0] = -bad if np.isinf(bad) else bad  # infinities that a sum cancels
    x[5, :2] = -0.0, 1.0
    got = within_one_range(np, x, spec.low[0], spec.high[0])
    assert got.tolist() == within(np, x, spec.low, spec.high, None).tolist() == [True, False, False, True, False, True]


def test_what_a_sum_cannot_judge_is_compared_value_by_value() -> None:
    assert sums_within(long_input(-1e3, 1e3, "float64"))
    largest = float(np.finfo(np.float32).max)
    several = long_input()
    several.high[7] = 2.0
    for spec in (
        long_input(-largest, largest),
        long_input(0, largest / LONG),
        long_input(-np.inf, np.inf),
        long_input(0, 255, "uint8"),
        long_input(0, 1, "float16"),
        long_input(missing=True),
        long_input(features=LONG - 1),
        several,
    ):
        assert not sums_within(spec)


def test_the_arithmetic_for_long_rows_is_plain_array_api() -> None:
    xp = array_api_strict
    x = xp.asarray([[0.5, 2.0], [0.5, 0.5], [0.5, float("nan")]])
    got = within_one_range(xp, x, xp.asarray(0.0), xp.asarray(1.0))
    assert [bool(v) for v in got] == [False, True, False]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("features", [1, 7, 16, 33, 784])
def test_a_glance_lets_no_bad_value_through_at_any_position(features: int, dtype: str) -> None:
    facts = replace(make_facts(), inputs=(long_input(dtype=dtype, features=features),))
    x = np.random.default_rng(0).random((1, features)).astype(dtype)
    view = View(make_batch(x), facts)
    assert Bounds().glance(view, {}) == {}, "control"
    for position in range(features):
        for bad in (np.nan, np.inf, -np.inf, -0.25, 1.5):
            good, x[0, position] = x[0, position], bad
            assert Bounds().glance(view, {}) is None
            x[0, position] = good
