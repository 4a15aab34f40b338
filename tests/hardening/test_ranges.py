from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from garrison.bundle.manifest import input_facts
from garrison.errors import CalibrationError
from garrison.guard.defenses.bounds import within
from garrison.hardening.ranges import input_specs
from garrison.types import Array


def admitted(x: Array, spec: Any) -> Array:
    facts = input_facts(spec)
    found: Array = within(np, x.reshape(len(x), -1), facts.low, facts.high, facts.may_be_missing)
    return found


def test_an_image_has_one_range() -> None:
    x = np.random.default_rng(0).random((50, 1, 4, 4), dtype=np.float32)
    (spec,) = input_specs({"image": x})
    assert (spec.datatype, spec.shape) == ("FP32", (1, 4, 4))
    assert (spec.minimum, spec.maximum) == (float(x.min()), float(x.max()))
    assert admitted(x, spec).all()


def test_a_table_has_a_range_a_feature_with_room() -> None:
    x = np.array([[0.0, 10.0, 5.0], [1.0, 30.0, 5.0]])
    (spec,) = input_specs({"x": x})
    assert spec.datatype == "FP64"
    assert spec.minimum == (-0.5, 0.0, -5.0)
    assert spec.maximum == (1.5, 40.0, 15.0)
    assert not admitted(np.array([[0.5, 41.0, 5.0]]), spec).any()


def test_missing_values_are_learned_and_no_others() -> None:
    x = np.array([[0.0, np.nan], [1.0, 2.0]], dtype=np.float32)
    (spec,) = input_specs({"x": x})
    assert spec.may_be_missing == (False, True)
    assert admitted(x, spec).all()
    assert not admitted(np.array([[np.nan, 1.0]], dtype=np.float32), spec).any()


def test_whole_numbers_keep_their_own_range() -> None:
    (spec,) = input_specs({"tokens": np.array([[3, 7], [5, 9]])})
    assert (spec.datatype, spec.minimum, spec.maximum) == ("INT64", 3.0, 9.0)


def test_the_owner_may_say_the_range() -> None:
    x = np.full((3, 2), 0.5, dtype=np.float32)
    (spec,) = input_specs({"x": x}, (0.0, 1.0))
    assert (spec.minimum, spec.maximum) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("x", "bounds", "message"),
    [
        (np.zeros((0, 3), dtype=np.float32), None, "no values"),
        (np.array([[np.inf, 0.0]]), None, "infinite"),
        (np.array([[np.nan, 0.0], [np.nan, 1.0]]), None, "feature 0"),
        (np.array([[0.0, 2.0]]), (0.0, 1.0), "outside the given range"),
        (np.array([[0.0, 1.0]]), (1.0, 0.0), "smaller to a larger"),
    ],
)
def test_bad_data(x: Array, bounds: tuple[float, float] | None, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        input_specs({"x": x}, bounds)
