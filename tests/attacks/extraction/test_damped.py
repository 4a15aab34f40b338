"""A step that has no solution is none, and no error."""

from __future__ import annotations

import numpy as np
import pytest

from garrison.attacks.extraction.damped import damped_step


def test_a_step_solves_the_damped_equations() -> None:
    matrix, gradient = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([1.0, 2.0])
    step = damped_step(matrix, gradient, np.array([2.0, 3.0]), 0.5)
    assert step is not None
    assert np.array([[3.0, 1.0], [1.0, 4.5]]) @ step == pytest.approx(gradient)


def test_a_matrix_without_a_solution_gives_no_step() -> None:
    singular, gradient = np.ones((2, 2)), np.ones(2)
    assert damped_step(np.zeros((2, 2)), gradient, np.zeros(2), 1.0) is None
    assert damped_step(singular, gradient, np.zeros(2), 1.0) is None
    assert damped_step(singular, gradient, np.ones(2), 1.0) is not None, "the control: damped, there is one"
