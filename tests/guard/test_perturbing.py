"""What all answer-perturbing defenses keep, and the exact programme two of them solve."""

from __future__ import annotations

from typing import Any

import array_api_strict
import numpy as np
import pytest
from scipy.optimize import linprog
from tests.guard.conftest import CLASSES, PLAIN_CODES, make_facts, make_scores

from garrison.errors import GuardError
from garrison.guard.base import Rows
from garrison.guard.perturbing import LEAD, Perturbing, first_of, moved, toward
from garrison.guard.pipeline import load_defense
from garrison.types import Array, DefenseSpec, FloatArray, Task

PERTURBING: list[tuple[str, dict[str, Any]]] = [
    ("reverse-sigmoid", {}),
    ("reverse-sigmoid", {"beta": 1.0, "gamma": 0.1}),
    ("prediction-poisoning", {"seed": 4}),
    ("gradient-redirection", {"seed": 4}),
    ("gradient-redirection", {"seed": 4, "direction": "opposite"}),
    ("modelguard-w", {}),
    ("modelguard-s", {"codes": PLAIN_CODES}),
]


def defense_of(name: str, **parameters: Any) -> Perturbing:
    found = load_defense(DefenseSpec(name=name, parameters=parameters))
    assert isinstance(found, Perturbing)
    return found


def answered(defense: Perturbing, p: FloatArray, seed: int = 0) -> FloatArray:
    projection = np.random.default_rng(seed).normal(size=(len(p), 32)).astype(np.float32)
    found: FloatArray = defense.rewrite(np, Rows(p, {"projection": projection}), {})
    return found


def answers(kind: type[np.floating[Any]] = np.float32) -> FloatArray:
    """From flat ones to sure ones, and corners."""
    corners = np.eye(CLASSES, dtype=kind)[:3]
    p = np.concatenate([make_scores(200, seed, scale).values for seed, scale in enumerate((0.3, 1.0, 4.0, 30.0))])
    return np.concatenate([p.astype(kind), corners, np.full((1, CLASSES), 1 / CLASSES, kind)])


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("name", "parameters"), PERTURBING)
class TestEveryOne:
    def test_the_budget_holds_and_the_answer_is_a_probability_vector(
        self, name: str, parameters: dict[str, Any], epsilon: float
    ) -> None:
        for keep_first in (True, False):
            p = answers()
            q = answered(defense_of(name, epsilon=epsilon, keep_first=keep_first, **parameters), p)
            assert q.dtype == p.dtype
            assert np.abs(q - p).sum(axis=1).max() <= epsilon + 1e-5
            assert q.min() >= -1e-6
            np.testing.assert_allclose(q.sum(axis=1), 1.0, atol=2e-6)

    def test_the_first_class_stays_first_also_when_rounded(
        self, name: str, parameters: dict[str, Any], epsilon: float
    ) -> None:
        p = answers(np.float64)
        q = answered(defense_of(name, epsilon=epsilon, **parameters), p)
        np.testing.assert_array_equal(q.argmax(axis=1), p.argmax(axis=1))
        best, held = np.sort(p, axis=1), np.sort(q, axis=1)
        lead = np.minimum(best[:, -1] - best[:, -2], LEAD)
        assert (held[:, -1] - held[:, -2] >= lead - 1e-9).all()

    def test_it_does_change_answers(self, name: str, parameters: dict[str, Any], epsilon: float) -> None:
        p = answers()
        q = answered(defense_of(name, epsilon=epsilon, **parameters), p)
        assert np.abs(q - p).sum(axis=1).mean() > 0.3 * min(epsilon, 1.0)

    def test_what_is_no_probability_is_answered_with_equal_ones(
        self, name: str, parameters: dict[str, Any], epsilon: float
    ) -> None:
        p = answers()[:6].copy()
        p[1, 3], p[2], p[4, 0] = np.nan, np.nan, np.inf
        with np.errstate(all="ignore"):
            q = answered(defense_of(name, epsilon=epsilon, **parameters), p)
        np.testing.assert_allclose(q[[1, 2, 4]], 1 / CLASSES)
        np.testing.assert_allclose(q[0], answered(defense_of(name, epsilon=epsilon, **parameters), p[:1])[0], atol=1e-6)

    def test_a_host_cannot_change_it(self, name: str, parameters: dict[str, Any], epsilon: float) -> None:
        signed = defense_of(name, epsilon=epsilon, **parameters)
        with pytest.raises(GuardError, match="a host may only tighten"):
            defense_of(name, epsilon=0.7, **parameters).check_tightened(signed)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 2.1, float("nan")])
def test_a_budget_that_is_none_is_refused(epsilon: float) -> None:
    with pytest.raises(GuardError, match="epsilon must lie above 0"):
        load_defense(DefenseSpec(name="modelguard-w", parameters={"epsilon": epsilon}))


@pytest.mark.parametrize("name", ["reverse-sigmoid", "modelguard-w"])
def test_a_regressor_has_no_probabilities(name: str) -> None:
    with pytest.raises(GuardError, match="needs a model that answers probabilities"):
        defense_of(name).check(make_facts(Task.REGRESSION, outputs=1))


def test_the_first_class_of_equal_ones_is_the_lower() -> None:
    found = first_of(np, np.array([[0.2, 0.4, 0.4], [1.0, 0.0, 0.0]]))
    assert found.tolist() == [[False, True, False], [True, False, False]]


def test_the_way_ends_at_the_target_or_at_the_budget() -> None:
    p, target = np.array([[0.6, 0.4, 0.0]]), np.array([[0.0, 0.0, 1.0]])
    np.testing.assert_allclose(toward(np, p, target, 2.0, keep_first=False), target)
    np.testing.assert_allclose(toward(np, p, target, 0.5, keep_first=False), [[0.45, 0.3, 0.25]])
    held = toward(np, p, target, 2.0, keep_first=True)
    np.testing.assert_allclose(held[0, 0] - held[0, 2], LEAD)
    near = np.array([[0.4, 0.398, 0.202]])
    np.testing.assert_array_equal(
        toward(np, near, target, 2.0, keep_first=True), near
    )  # its lead is below LEAD already


def best_by_programme(p: Array, score: Array, mass: float) -> float:
    """max score . q over the simplex and the L1 ball, by a general solver: q = p + up - down."""
    k = len(p)
    total = np.concatenate([np.ones(k), np.ones(k)])
    found = linprog(
        -np.concatenate([score, -score]),
        A_ub=np.concatenate([[total], np.hstack([-np.eye(k), np.eye(k)])]),
        b_ub=np.concatenate([[2 * mass], p]),
        A_eq=[np.concatenate([np.ones(k), -np.ones(k)])],
        b_eq=[0.0],
        bounds=(0, None),
    )
    return float(score @ p - found.fun)


@pytest.mark.parametrize("mass", [0.05, 0.4, 1.0])
def test_moved_is_the_solution_of_the_programme(mass: float) -> None:
    rng = np.random.default_rng(0)
    p, score = rng.dirichlet(np.full(5, 0.4), 20), rng.normal(size=(20, 5))
    q = moved(np, p, score, mass)
    assert np.abs(q - p).sum(axis=1).max() <= 2 * mass + 1e-12
    wanted = [best_by_programme(one, s, mass) for one, s in zip(p, score, strict=True)]
    np.testing.assert_allclose((q * score).sum(axis=1), wanted, atol=1e-9)


def test_the_arithmetic_is_the_standards() -> None:
    """The same lines over the strict implementation of the Array API."""
    xp: Any = array_api_strict
    p = answers(np.float64)[:50]
    for name, parameters in PERTURBING:
        defense = defense_of(name, **parameters)
        projection = np.random.default_rng(0).normal(size=(50, 32))
        strict = defense.rewrite(xp, Rows(xp.asarray(p), {"projection": xp.asarray(projection)}), {})
        np.testing.assert_allclose(
            np.asarray(strict), defense.rewrite(np, Rows(p, {"projection": projection}), {}), atol=1e-12
        )
