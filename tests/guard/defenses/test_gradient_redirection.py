from __future__ import annotations

import numpy as np
import pytest
from tests.guard.test_perturbing import best_by_programme, defense_of
from tests.guard.test_surrogate import CLASSES, SEED, jacobian, projections

from garrison.guard.base import Rows
from garrison.guard.defenses.gradient_redirection import Direction, GradientRedirection


@pytest.mark.parametrize("direction", ["all-ones", "opposite"])
@pytest.mark.parametrize("epsilon", [0.2, 1.0])
def test_no_answer_within_the_budget_turns_the_gradient_further(epsilon: float, direction: Direction) -> None:
    """Against the paper's programme, with a Jacobian by finite differences and a general solver."""
    x = projections(5)
    p = np.random.default_rng(0).dirichlet(np.full(CLASSES, 0.5), len(x))
    defense = defense_of("gradient-redirection", seed=SEED, epsilon=epsilon, direction=direction, keep_first=False)
    q = defense.rewrite(np, Rows(p, {"projection": x}), {})
    for i, one in enumerate(x):
        g, _ = jacobian(one)
        z = np.ones(g.shape[1]) if direction == "all-ones" else -(g.T @ p[i])
        score = g @ z
        assert score @ q[i] == pytest.approx(best_by_programme(p[i], score, 0.5 * epsilon), rel=1e-5, abs=1e-5)
        assert score @ q[i] > score @ p[i] + 1e-3


def test_with_the_first_class_kept_it_still_goes_that_way() -> None:
    x = projections(50)
    p = np.random.default_rng(0).dirichlet(np.full(CLASSES, 0.5), len(x))
    free, held = (
        defense_of("gradient-redirection", seed=SEED, keep_first=keep).rewrite(np, Rows(p, {"projection": x}), {})
        for keep in (False, True)
    )
    share = np.linalg.norm(held - p, axis=1) / np.linalg.norm(free - p, axis=1)
    np.testing.assert_allclose(held - p, share[:, np.newaxis] * (free - p), atol=1e-9)
    assert 0.3 < share.mean() < 1


def test_the_seed_is_checked() -> None:
    with pytest.raises(ValueError, match="seed"):
        GradientRedirection(seed=2**63)
