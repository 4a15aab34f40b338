"""PSI and KS by hand."""

from __future__ import annotations

import math

import numpy as np

from garrison.guard.drifting.measures import ks, psi

START = np.array([0, 3])
REFERENCE = np.array([0.5, 0.3, 0.2, 0.9, 0.1])
NOW = np.array([0.2, 0.3, 0.5, 0.9, 0.1])


def test_psi_is_the_sum_of_its_terms_column_by_column() -> None:
    by_hand = 0.3 * math.log(0.5 / 0.2) * 2
    found = psi(NOW, REFERENCE, START)
    np.testing.assert_allclose(found, [by_hand, 0], rtol=1e-3, atol=1e-12)
    assert np.isfinite(psi(np.array([1.0, 0, 0, 1, 0]), REFERENCE, START)).all()


def test_ks_is_the_largest_difference_of_the_running_sums() -> None:
    np.testing.assert_allclose(ks(NOW, REFERENCE, START), [0.3, 0], atol=1e-12)
