"""What an extraction hands over is graded here and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.attacks.services import CLASSES, Linear, facts, rows

from garrison.attacks.exam import EQUAL_VALUES, Exam, Loot, measure_loot, unit_of
from garrison.errors import AuditError
from garrison.types import Array, FloatArray

VALUES = dataclasses.replace(facts(classes=1, soft=False), regression=True)


def nothing(x: Array) -> FloatArray:
    return np.full((len(x), CLASSES), 1.0 / CLASSES)


def test_uniform_fidelity_is_measured_beside_fidelity() -> None:
    x, uniform = rows(20), rows(30, seed=3)
    truth = Linear().truth
    exam = Exam(x, None, truth(x), uniform, truth(uniform))
    right, wrong = (measure_loot(Loot(clone), exam, facts()) for clone in (truth, nothing))
    assert right["uniform_fidelity"].shape == (30,)
    assert right["uniform_fidelity"].mean() == 1.0
    assert wrong["uniform_fidelity"].mean() < 0.8


def test_a_regressor_is_graded_by_its_values() -> None:
    x = rows(50)
    truth = x.sum(axis=1, keepdims=True).astype(np.float64)
    off = 2 * EQUAL_VALUES * truth.std()
    exam = Exam(x, None, truth)
    exact = measure_loot(Loot(lambda asked: asked.sum(axis=1, keepdims=True)), exam, VALUES)
    near = measure_loot(Loot(lambda asked: asked.sum(axis=1, keepdims=True) + off), exam, VALUES)
    assert (exact["fidelity"].mean(), near["fidelity"].mean()) == (1.0, 0.0)
    assert near["value_error"].mean() == pytest.approx(2 * EQUAL_VALUES, rel=1e-3)


def test_hyperparameters_are_graded_against_the_true_ones() -> None:
    exam = Exam(rows(3), None, hyperparameters={"lambda": 2.0, "unasked": 1.0})
    scores = measure_loot(Loot(nothing, hyperparameters={"lambda": 1.5}), exam, facts())
    assert scores.keys() == {"relative_error_lambda"}
    assert scores["relative_error_lambda"].tolist() == [0.25]
    assert unit_of("relative_error_lambda") == "relative error"


def test_what_an_attack_says_of_itself_grades_nothing() -> None:
    exam = Exam(rows(3), np.zeros(3, dtype=np.int64))
    assert measure_loot(Loot(nothing, {"fidelity": 1.0}), exam, facts()).keys() == {"clone_accuracy"}


def test_a_clone_in_another_form_is_the_audits_error() -> None:
    with pytest.raises(AuditError, match=r"\(3, 9\)"):
        measure_loot(Loot(lambda x: np.zeros((len(x), 9))), Exam(rows(3), None), facts())
