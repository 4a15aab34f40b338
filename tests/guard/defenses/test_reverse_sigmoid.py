from __future__ import annotations

import numpy as np
import pytest
from tests.guard.test_perturbing import answered, answers, defense_of

from garrison.guard.defenses.reverse_sigmoid import ReverseSigmoid, reverse_sigmoid
from garrison.types import FloatArray


def as_printed(p: FloatArray, beta: float, gamma: float) -> FloatArray:
    """The paper's formula, with its logarithms."""
    bent = p - beta * (1 / (1 + np.exp(-gamma * np.log(p / (1 - p)))) - 0.5)
    found: FloatArray = bent / bent.sum(axis=1, keepdims=True)
    return found


@pytest.mark.parametrize(("beta", "gamma"), [(0.7, 0.2), (1.0, 0.5), (0.1, 2.0)])
def test_it_is_the_papers_formula(beta: float, gamma: float) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(6), 200)
    np.testing.assert_allclose(reverse_sigmoid(np, p, beta, gamma), as_printed(p, beta, gamma), rtol=1e-9)


def test_a_sure_answer_is_bent_alike_however_it_was_rounded() -> None:
    """In single precision 1 - p of a sure model is rounding alone; the bend must not show it."""
    p = np.array([[1 - 3e-9, 1e-9, 2e-9]])
    single, double = (reverse_sigmoid(np, p.astype(kind), 0.7, 0.2) for kind in (np.float32, np.float64))
    np.testing.assert_allclose(single, double, rtol=1e-5)


def test_different_answers_become_alike() -> None:
    """What it is made for: rows far apart come nearer to each other than they were."""
    p = answers()
    q = answered(defense_of("reverse-sigmoid", epsilon=2.0), p)
    assert q.max(axis=1).std() < 0.6 * p.max(axis=1).std()


@pytest.mark.parametrize("bad", [{"beta": 0.0}, {"beta": 1.1}, {"gamma": 0.0}, {"gamma": 3.0}])
def test_parameters_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="reverse-sigmoid"):
        ReverseSigmoid(**bad)  # type: ignore[arg-type]
