from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog
from tests.guard.test_perturbing import answered, defense_of

from garrison.guard.perturbing import LEAD
from garrison.types import Array, FloatArray


def farthest(p: Array, epsilon: float, *, keep_first: bool, tries: int = 10) -> float:
    """The largest L2 distance that linear programmes in many directions find: the maximum lies in a corner of the set, and each
    programme ends in one."""
    k, first = len(p), int(p.argmax())
    rows = [np.concatenate([np.ones(k), np.ones(k)]), *np.hstack([-np.eye(k), np.eye(k)])]
    limits = [epsilon, *p]
    for other in range(k) if keep_first else ():
        if other != first:
            one = np.eye(k)[other] - np.eye(k)[first]
            rows.append(np.concatenate([one, -one]))
            limits.append(p[first] - p[other] - min(LEAD, p[first] - p[other]))
    rng = np.random.default_rng(0)
    directions = [np.array(d, float) for d in itertools.product([-1, 0, 1], repeat=k)]
    best = 0.0
    for way in [*directions, *rng.normal(size=(tries, k))]:
        found = linprog(
            -np.concatenate([way, -way]),
            A_ub=rows,
            b_ub=limits,
            A_eq=[np.concatenate([np.ones(k), -np.ones(k)])],
            b_eq=[0.0],
        )
        best = max(best, float(np.linalg.norm(found.x[:k] - found.x[k:])))
    return best


def drawn(rows: int) -> FloatArray:
    return np.random.default_rng(1).dirichlet(np.full(3, 0.6), rows)


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_without_the_first_class_it_is_the_farthest_answer(epsilon: float) -> None:
    p = drawn(4)
    q = answered(defense_of("modelguard-w", epsilon=epsilon, keep_first=False), p)
    wanted = [farthest(one, epsilon, keep_first=False) for one in p]
    np.testing.assert_allclose(np.linalg.norm(q - p, axis=1), wanted, rtol=1e-9)


@pytest.mark.parametrize("epsilon", [0.3, 1.0])
def test_with_it_hardly_any_answer_is_farther(epsilon: float) -> None:
    p = drawn(4)
    q = answered(defense_of("modelguard-w", epsilon=epsilon), p)
    wanted = np.array([farthest(one, epsilon, keep_first=True) for one in p])
    share = np.linalg.norm(q - p, axis=1) / wanted
    assert share.max() <= 1 + 1e-9
    assert share.min() > 0.75
    assert share.mean() > 0.9


def test_a_sure_answer_becomes_nearly_a_tie_and_a_flat_one_sure() -> None:
    p = np.array([[0.98, 0.015, 0.005], [0.36, 0.33, 0.31]])
    q = answered(defense_of("modelguard-w"), p)
    np.testing.assert_allclose(q[0], [0.4975, 0.015, 0.4875])
    np.testing.assert_allclose(q[1], [0.86, 0.0, 0.14])
