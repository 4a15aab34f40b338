"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from garrison.audit import metrics


def test_accuracy_agreement_and_change_are_three_things() -> None:
    served, y, f = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]), np.array([0, 0, 0, 2])
    assert metrics.accuracy(served, y).value == 0.75
    assert metrics.agreement(served, f).value == 0.5
    assert metrics.changed(served, f).value == 0.5
    assert metrics.changed(served, y).value == 0.25


def test_paired_loss_keeps_the_pairs() -> None:
    y = np.zeros(1000, dtype=np.int64)
    before, after = np.zeros(1000, dtype=np.int64), np.zeros(1000, dtype=np.int64)
    before[:300] = 1  # both are wrong on these: no loss, and no width
    after[:310] = 1
    found = metrics.paired_loss(before, after, y)
    assert found.value == pytest.approx(0.01)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(0.01 * 0.99 / 1000), rel=0.15)
    assert metrics.paired_loss(after, before, y).value == pytest.approx(-0.01)


def test_mean_l1_by_hand() -> None:
    p, q = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.5]])
    assert metrics.mean_l1(p, q).value == pytest.approx(1.0)


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.9 confident and right on 3 of 4, 0.6 confident and right on 1 of 2."""
    p = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2)
    y = np.array([0, 0, 0, 1, 0, 1])
    expected = 4 / 6 * abs(0.75 - 0.9) + 2 / 6 * abs(0.5 - 0.6)
    assert metrics.calibration_error(p, y).value == pytest.approx(expected)
    certain = np.array([[1.0, 0.0]] * 10)
    found = metrics.calibration_error(certain, np.zeros(10, dtype=np.int64))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_entropy_by_hand() -> None:
    assert metrics.normalised_entropy(np.array([0, 1, 2, 3]), 4).value == pytest.approx(1.0)
    assert metrics.normalised_entropy(np.array([2, 2, 2]), 4).value == pytest.approx(0.0)
    assert metrics.normalised_entropy(np.array([0, 1, -1]), 4).value == pytest.approx(0.5)
    with pytest.raises(ValueError, match="one labelled row"):
        metrics.normalised_entropy(np.array([-1]), 4)


def test_classes_used_and_queries_to_fidelity() -> None:
    assert metrics.classes_used(np.array([3, 3, 1, -1])).value == 2
    by_queries = {500: 0.7, 2000: 0.91, 5000: 0.94}
    assert metrics.queries_to(0.90, by_queries) == 2000
    assert metrics.queries_to(0.95, by_queries) is None
