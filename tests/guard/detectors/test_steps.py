from __future__ import annotations

import numpy as np
import pytest

from garrison.guard.detectors.steps import MOST_NATS, TERMS, Odds, check_steps, terms

UNIT, MOST = 0.1, 200


@pytest.mark.parametrize("seed", range(3))
def test_odds_are_linear_in_the_terms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, known = rng.normal(size=TERMS) * 0.05, rng.integers(50, 400, 300)
    squares = np.sort(rng.integers(1, 4000, (2, 300)), axis=0).astype(np.float32)
    nearest, second = np.sqrt(squares.astype(np.float64)) * UNIT
    expected = np.clip(terms(nearest, second, known, MOST) @ weights, -MOST_NATS, MOST_NATS)
    odds = Odds(weights.tolist(), 0.3, UNIT, MOST)
    np.testing.assert_allclose(odds(squares, np.minimum(known, MOST)), expected, atol=1e-4)
    full = known >= MOST
    np.testing.assert_allclose(odds(squares[:, full], MOST), expected[full], atol=1e-4)
    assert (np.abs(expected) < MOST_NATS).mean() > 0.1, "control: not all of them are cut"


def test_what_is_much_nearer_than_the_second_is_not_let_off() -> None:
    """A square of the logarithm that falls and rises again would let very small steps go."""
    weights = (0.0, -4.0, 5.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    odds = Odds(weights, 0.3, 1.0, MOST)
    second = np.full(40, 900.0, np.float32)
    nearest = np.geomspace(0.5, 900.0 / np.e**2, 40).astype(np.float32)
    np.testing.assert_allclose(odds(np.stack([nearest, second]), MOST), odds(np.stack([nearest, second]), MOST)[-1])


def test_bad_parameters() -> None:
    for wrong in ({"unit": 0.0}, {"stepped": 1.5}, {"weights": (1.0,)}, {"weights": (np.inf,) * TERMS}):
        with pytest.raises(ValueError, match="accounts"):
            check_steps("accounts", **({"unit": 1.0, "weights": (0.0,) * TERMS, "stepped": 0.5} | wrong))  # type: ignore[arg-type]
