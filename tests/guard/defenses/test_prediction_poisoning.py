from __future__ import annotations

import numpy as np
import pytest
from tests.guard.test_perturbing import defense_of
from tests.guard.test_surrogate import CLASSES, SEED, jacobian, projections

from garrison.guard.base import Rows
from garrison.guard.defenses.prediction_poisoning import PredictionPoisoning
from garrison.types import FloatArray


def test_it_goes_to_the_corner_of_largest_angular_deviation() -> None:
    """Against the paper's objective, with a Jacobian by finite differences."""
    x = projections(5)
    p = np.random.default_rng(0).dirichlet(np.full(CLASSES, 0.5), len(x))
    target = defense_of("prediction-poisoning", seed=SEED).target(np, Rows(p, {"projection": x}))
    for i, one in enumerate(x):
        g, _ = jacobian(one)

        def turned(q: FloatArray, g: FloatArray = g, i: int = i) -> float:
            a, b = g.T @ q, g.T @ p[i]
            return float(np.square(a / np.linalg.norm(a) - b / np.linalg.norm(b)).sum())

        np.testing.assert_array_equal(target[i], np.eye(CLASSES)[int(np.argmax([turned(e) for e in np.eye(CLASSES)]))])


def test_the_seed_is_checked() -> None:
    with pytest.raises(ValueError, match="seed"):
        PredictionPoisoning(seed=-1)


def test_another_seed_bends_otherwise() -> None:
    p = np.random.default_rng(0).dirichlet(np.full(CLASSES, 0.5), 300)
    x = projections(300)
    one, other = (defense_of("prediction-poisoning", seed=s).target(np, Rows(p, {"projection": x})) for s in (1, 2))
    assert (one != other).any(axis=1).mean() > 0.2
