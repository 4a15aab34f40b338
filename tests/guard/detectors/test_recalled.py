"""Distances to remembered rows are those of row after row, whoever asks how many at once."""

from __future__ import annotations

import numpy as np
import pytest

from garrison.guard.detectors.base import Seen
from garrison.guard.detectors.recalled import apart, columns_of, whole
from garrison.types import Array

WIDTH, SLOTS, CALLERS, UNIT = 6, 5, 4, 0.5


def seen_of(place: Array, seed: int) -> Seen:
    x = 4 * np.random.default_rng(seed).normal(size=(len(place), WIDTH)).astype(np.float32)
    asked = np.array([np.count_nonzero(place[:row] == one) for row, one in enumerate(place)])
    nothing = np.zeros(len(place), np.float32)
    return Seen(place, asked, x, nothing, nothing, place)


def fresh() -> dict[str, Array]:
    columns = columns_of(SLOTS, WIDTH)
    return {name: np.full((CALLERS, *c.shape), c.fill, c.dtype) for name, c in columns.items()}


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_each_row_meets_what_its_caller_asked_before(cut: int) -> None:
    seen, columns = seen_of(np.random.default_rng(0).integers(0, CALLERS, 40), 1), fresh()
    slot = np.random.default_rng(2).integers(0, SLOTS, 40)
    held: dict[tuple[int, int], Array] = {}
    overwritten = 0
    for part, some in seen.parts(cut):
        squares, own = apart(some, UNIT, slot[part], columns)
        found = np.empty_like(squares)
        found[some.order.sorted] = squares + own[:, np.newaxis]
        x = whole(some.projection, UNIT)
        for row, (place, where) in enumerate(zip(some.place.tolist(), slot[part].tolist(), strict=True)):
            there = [held.get((place, s)) for s in range(SLOTS)]
            expected = [np.inf if y is None else float(((x[row] - y) ** 2).sum()) for y in there]
            np.testing.assert_array_equal(found[row], expected)
            overwritten += (place, where) in held
            held[place, where] = x[row]
    assert overwritten > 10, "control"
    for (place, where), x in held.items():
        np.testing.assert_array_equal(columns["rows"][place, :, where], x)


def test_detectors_that_measure_in_another_unit_do_not_meet() -> None:
    seen = seen_of(np.arange(CALLERS), 0)
    one, other = fresh(), fresh()
    apart(seen, UNIT, seen.asked, one)
    apart(seen, 2 * UNIT, seen.asked, other)
    np.testing.assert_array_equal(one["rows"][:, :, 0], whole(seen.projection, UNIT))
    np.testing.assert_array_equal(other["rows"][:, :, 0], whole(seen.projection, 2 * UNIT))
