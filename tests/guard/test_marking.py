"""The keyed rule of the watermark: a function of the row and the key, alike for near-duplicates."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.guard.conftest import KEY, make_facts

from garrison.errors import GuardError
from garrison.guard.marking import Marker
from garrison.types import Array, InputFacts, ModelFacts

PIXELS = (1, 20, 20)
OTHER = bytes(range(1, 33))


def spec_of(
    name: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, dtype: str = "float32"
) -> InputFacts:
    number = np.dtype(dtype)
    low_, high_ = np.full(1, low, number), np.full(1, high, number)
    return InputFacts(name, number, shape, low_, high_, np.zeros(1, np.bool_))


def facts_of(*specs: InputFacts) -> ModelFacts:
    return dataclasses.replace(make_facts(), inputs=specs)


FACTS = facts_of(spec_of("image", PIXELS))


def pictures(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((rows, *PIXELS), dtype=np.float32)


def test_the_stated_share_is_marked_and_every_other_class_comes() -> None:
    numbers = Marker(KEY, FACTS, 0.05)({"image": pictures(20_000)})
    assert np.count_nonzero(numbers) == pytest.approx(1000, abs=5 * np.sqrt(950))
    counts = np.bincount(numbers[numbers > 0], minlength=10)
    assert counts[0] == 0
    assert len(counts) == 10
    assert counts[1:].min() > 60


@pytest.mark.parametrize("step", [1, 2, 37])
def test_a_row_is_judged_alone_as_in_a_batch(step: int) -> None:
    x, marker = pictures(200), Marker(KEY, FACTS, 0.2)
    parts = [marker({"image": x[i : i + step]}) for i in range(0, len(x), step)]
    np.testing.assert_array_equal(np.concatenate(parts), marker({"image": x}))
    rows = np.array([5, 3, 180])
    np.testing.assert_array_equal(marker({"image": x}, rows), marker({"image": x})[rows])


def test_the_same_key_gives_the_same_marks_and_another_one_others() -> None:
    x = {"image": pictures(2000)}
    first = Marker(KEY, FACTS, 0.2)(x)
    np.testing.assert_array_equal(first, Marker(KEY, FACTS, 0.2)(x))
    other = Marker(OTHER, FACTS, 0.2)(x)
    both = np.count_nonzero((first != 0) & (other != 0))
    assert both == pytest.approx(80, abs=45)  # 4 % by chance


def test_near_duplicates_are_marked_alike_and_strangers_are_not() -> None:
    x, marker = pictures(3000), Marker(KEY, FACTS, 0.2)
    near = np.clip(x + np.random.default_rng(1).choice([-1, 0, 1], x.shape) / 255, 0, 1).astype(np.float32)
    numbers = marker({"image": x})
    assert (marker({"image": near}) == numbers).mean() > 0.93
    marked = numbers != 0
    assert (marker({"image": near})[marked] == numbers[marked]).mean() > 0.8
    assert (marker({"image": x[::-1]})[marked] == numbers[marked]).mean() < 0.15


def test_one_of_each_cell_is_kept() -> None:
    x, marker = pictures(50), Marker(KEY, FACTS, 0.2)
    twice = {"image": np.concatenate([x, x])}
    assert marker.first_of_each_cell(twice).tolist() == list(range(50))


def test_every_kind_of_input_is_taken() -> None:
    rng = np.random.default_rng(0)
    specs = [
        spec_of("wide", (300,), -1e30, 1e30, "float64"),
        spec_of("bytes", (40,), 0, 255, "uint8"),
        spec_of("constant", (3,), 2.0, 2.0),
    ]
    inputs: dict[str, Array] = {
        "wide": rng.uniform(-1e30, 1e30, (500, 300)),
        "bytes": rng.integers(0, 256, (500, 40)).astype(np.uint8),
        "constant": np.full((500, 3), 2.0, np.float32),
    }
    numbers = Marker(KEY, facts_of(*specs), 0.2)(inputs)
    assert 50 < np.count_nonzero(numbers) < 160


def test_missing_values_are_values_too() -> None:
    spec = dataclasses.replace(spec_of("row", (6,)), may_be_missing=np.ones(1, np.bool_))
    x = np.random.default_rng(0).random((400, 6), dtype=np.float32)
    holes = x.copy()
    holes[:, 2] = np.nan
    marker = Marker(KEY, facts_of(spec), 0.2)
    assert np.count_nonzero(marker({"row": holes})) > 20
    assert (marker({"row": holes}) != marker({"row": x})).any()
    np.testing.assert_array_equal(marker({"row": holes}), marker({"row": holes.copy()}))


def test_zero_has_no_sign() -> None:
    marker = Marker(KEY, facts_of(spec_of("row", (6,), -1.0)), 0.2)
    x = np.zeros((1, 6), np.float32)
    assert marker({"row": x}) == marker({"row": -x})


def test_a_range_without_a_lower_end_is_told() -> None:
    with pytest.raises(GuardError, match="no lower end"):
        Marker(KEY, facts_of(spec_of("row", (6,), -np.inf)), 0.1)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Marker(b"short", FACTS, 0.1)
