"""Codes for ModelGuard-S from held-out answers."""

from __future__ import annotations

import numpy as np
import pytest
from tests.guard.conftest import CLASSES, make_scores
from tests.guard.test_perturbing import defense_of

from garrison.errors import CalibrationError
from garrison.guard.defenses.modelguard_s import nearest
from garrison.hardening.codebook import COVERED, calibrated, codebook
from garrison.types import FloatArray


def honest(rows: int = 1500, scale: float = 3.0) -> FloatArray:
    return make_scores(rows, 0, scale).values


@pytest.mark.parametrize("epsilon", [0.6, 1.0])
def test_nearly_all_honest_answers_are_near_a_code(epsilon: float) -> None:
    p = honest()
    codes = codebook(p, epsilon)
    apart = np.abs(nearest(np, p.astype(np.float64), codes) - p).sum(axis=1)
    assert (apart <= epsilon).mean() >= COVERED - 0.02  # rows that are nearly a tie are not counted in the cover
    np.testing.assert_allclose(codes.sum(axis=1), 1.0, atol=1e-12)
    assert sorted(set(codes.argmax(axis=1))) == list(range(CLASSES))


def test_a_smaller_budget_needs_more_codes() -> None:
    p = honest()
    assert len(codebook(p, 0.5)) > len(codebook(p, 1.0)) >= 2 * CLASSES


def test_what_is_calibrated_can_be_loaded() -> None:
    found = calibrated({"epsilon": 0.8}, honest(300))
    assert defense_of("modelguard-s", **found).epsilon == 0.8
    assert calibrated(found, honest(10)) is found  # the owner's own codes stay


def test_a_class_that_was_never_first_has_codes_all_the_same() -> None:
    p = honest()
    assert set(codebook(p[p.argmax(axis=1) != 3], 1.0).argmax(axis=1)) == set(range(CLASSES))


@pytest.mark.parametrize("classes", [2, 60])
def test_few_and_many_classes(classes: int) -> None:
    p = np.random.default_rng(0).dirichlet(np.full(classes, 0.1), 400)
    defense_of("modelguard-s", **calibrated({}, p))


def test_what_cannot_be_calibrated_is_told() -> None:
    with pytest.raises(CalibrationError, match="--release label"):
        codebook(np.full((10, 200), 1 / 200), 1.0)
    with pytest.raises(CalibrationError, match="finite"):
        codebook(np.full((10, 3), np.nan), 1.0)
    with pytest.raises(CalibrationError, match="epsilon"):
        calibrated({"epsilon": 3}, honest(10))
