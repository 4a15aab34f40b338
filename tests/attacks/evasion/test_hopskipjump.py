from __future__ import annotations

import numpy as np
from tests.attacks.evasion.pictures import Shown, carried_out

from garrison.attacks.evasion.hopskipjump import HopSkipJump


def test_it_goes_on_to_the_nearest_point_of_the_boundary() -> None:
    """The model is linear, so the distance to the nearest other class is known in closed form."""
    service = Shown(soft=False)
    pictures = service.pictures(10)
    few, many = (
        carried_out(HopSkipJump(norm="l2", epsilon=2.0, steps=30), Shown(soft=False), budget=b, pictures=pictures)
        for b in (80, 1200)
    )
    weights = np.random.default_rng(7).normal(size=(64, 4))
    z = (pictures.x.reshape(10, -1) - 0.5) @ weights
    own = z[np.arange(10), pictures.y][:, None]
    lengths = np.linalg.norm(weights[:, pictures.y].T[:, None] - weights.T[None], axis=2)
    nearest = np.where(lengths > 0, (own - z) / np.where(lengths > 0, lengths, 1), np.inf).min(axis=1)
    assert (many.distance >= nearest * 0.999).all(), "nothing lies nearer than the boundary"
    assert np.median(many.distance / nearest) < 1.35
    assert np.median(few.distance) > np.median(many.distance)


def test_it_attacks_tables_too() -> None:
    trial = carried_out(HopSkipJump(norm="l2", epsilon=1.0, steps=20), Shown(soft=False, shape=(10,)))
    assert trial.fools["served"].any()


def test_it_begins_with_pictures_of_its_own_where_it_has_any() -> None:
    service = Shown(soft=False)
    others = service.pictures(30, seed=9).x
    pictures = service.pictures(accounts=np.arange(1, 5), others=others)
    carried_out(HopSkipJump(norm="l2", epsilon=1.0, begin="picture"), service, budget=20, pictures=pictures)
    for account in range(1, 5):
        first = service.asked[account][0][0]
        assert (np.abs(others - first).max(axis=(1, 2, 3)) < 1e-6).any()


def test_without_a_beginning_it_gives_up() -> None:
    service = Shown(soft=False)
    trial = carried_out(HopSkipJump(norm="l2", epsilon=0.5, starts=3), Shown(uncertain=True, soft=False))
    assert (trial.queries == 3).all()
    np.testing.assert_array_equal(trial.found, service.pictures().x)
