"""Measures against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from garrison.attacks import measures


def test_accuracy_and_fidelity_are_shares_of_equal_labels() -> None:
    assert measures.correct(np.array([1, 2, 3, 3]), np.array([1, 2, 0, 3])).tolist() == [1.0, 1.0, 0.0, 1.0]


def test_total_variation_is_half_the_l1_distance() -> None:
    p, q = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.75, 0.25]])
    assert measures.total_variation(p, q).tolist() == [1.0, 0.25]


def test_chance_is_the_share_of_the_most_frequent_class() -> None:
    assert measures.most_frequent_share(np.array([0, 0, 0, 1])) == 0.75
    assert (
        measures.most_frequent_share(np.array([-1, -1, 0, 1])) == 0.25
    )  # rows without a class are wrong for everybody
    assert measures.most_frequent_share(np.array([-1])) == 0.0


@pytest.mark.parametrize(
    ("degrees", "p", "expected"),
    [(1, 0.975, 12.706205), (2, 0.975, 4.302653), (4, 0.975, 2.776445), (9, 0.95, 1.833113), (120, 0.975, 1.979930)],
)
def test_students_quantile_agrees_with_the_printed_table(degrees: int, p: float, expected: float) -> None:
    assert measures.student_quantile(p, degrees) == pytest.approx(expected, abs=1e-6)


def test_interval_over_seeds_by_hand() -> None:
    found = measures.over_seeds(np.array([0.1, 0.2, 0.3]))
    half = 4.302653 * 0.1 / np.sqrt(3)  # s = 0.1 with two degrees of freedom
    assert found.interval == "t over 3 seeds, 95 %"
    assert [found.low, found.value, found.high] == pytest.approx([0.2 - half, 0.2, 0.2 + half], abs=1e-6)


def test_bootstrap_of_a_share_has_the_binomial_width() -> None:
    found = measures.over_rows(np.repeat([0.0, 1.0], [700, 300]))
    assert found.value == pytest.approx(0.3)
    assert found.interval == "bootstrap over test rows, 95 %"
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert found.low == pytest.approx(0.3 - half, abs=0.003)
    assert found.high == pytest.approx(0.3 + half, abs=0.003)
    assert measures.over_rows(np.ones(10)) == measures.Estimate(1.0, 1.0, 1.0, "bootstrap over test rows, 95 %")


def test_bootstrap_of_many_values_agrees_with_that_of_few() -> None:
    """The short cut for few values is the same distribution: both have the normal width here."""
    values = np.random.default_rng(1).normal(size=1000)
    found = measures.over_rows(values)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(1000), rel=0.08)


def test_the_interval_is_named_by_the_number_of_seeds() -> None:
    rows = [np.array([0.0, 1.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])]
    assert measures.pooled(rows[:2]).interval == "bootstrap over test rows, 95 %"
    assert measures.pooled(rows[:2]).value == pytest.approx(0.875)
    three = measures.pooled(rows)
    assert three.interval == "t over 3 seeds, 95 %"
    assert three.value == pytest.approx(0.75)
    assert three.high == pytest.approx(0.75 + 4.302653 * 0.25 / np.sqrt(3), abs=1e-6)
