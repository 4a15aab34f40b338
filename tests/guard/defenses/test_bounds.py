from __future__ import annotations

import array_api_strict
import numpy as np
import pytest
from tests.guard.conftest import FEATURES, make_batch, make_facts, make_inputs

from garrison.guard.base import Code, View
from garrison.guard.defenses.bounds import Bounds, within


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
