"""Who asks most is told apart, however many there are, in bounded memory."""

from __future__ import annotations

import numpy as np

from garrison.guard.drifting.callers import TopCallers

CODES = np.array([[0, 1, 1, 0], [2, 2, 3, 3]])


def test_each_callers_rows_are_counted_apart_and_fade() -> None:
    top = TopCallers(2, 4)
    places = top.places_of(["ann", "bob"], np.array([2, 2]))
    top.add(places[[0, 0, 1, 1]], CODES, kept=0.5, each=0.125)
    np.testing.assert_allclose(top.shares[places[0]], np.array([1, 1, 2, 0]) * 0.125)
    np.testing.assert_allclose(top.shares[places[1]], np.array([1, 1, 0, 2]) * 0.125)
    top.add(top.places_of(["ann"], np.array([4]))[[0, 0, 0, 0]], CODES, kept=0.5, each=0.125)
    np.testing.assert_allclose(top.shares[places[1]], np.array([1, 1, 0, 2]) * 0.0625)
    np.testing.assert_allclose(top.shares.sum(), 2 * (0.5 * 0.5 + 0.5))
    assert top.rows.tolist() == [6, 2]


def test_rows_of_who_is_not_told_apart_are_nobodys() -> None:
    top, rng = TopCallers(2, 4), np.random.default_rng(0)
    told = top.places_of(["ann", "bob"], np.array([1, 1]))
    place = np.append(told, len(top))[rng.integers(0, 3, 50)]
    codes = np.stack([rng.integers(0, 2, 50), rng.integers(2, 4, 50)])
    top.add(place, codes, kept=0.5, each=0.01)
    for mine in told:
        counts = np.bincount(codes[:, place == mine].ravel(), minlength=4)
        np.testing.assert_allclose(top.shares[mine], 0.01 * counts, rtol=1e-6)
    assert top.shares.shape == (2, 4)
    assert top.rows.sum() == (place < 2).sum() < 50


def test_a_crowd_of_strangers_does_not_push_out_who_asks_most() -> None:
    top, rng = TopCallers(4, 4), np.random.default_rng(0)
    for turn in range(200):
        names = ["steady"] + [f"stranger {turn} {k}" for k in range(20)]
        who = np.r_[np.zeros(12, np.intp), np.arange(1, 21)]
        places = top.places_of(names, np.bincount(who))
        top.add(places[who], rng.integers(0, 2, (1, len(who))), kept=0.99, each=0.01 / len(who))
    assert "steady" in top.names
    assert len(top.names) == 4
    assert top.rows[top.names.index("steady")] == 200 * 12


def test_fading_for_long_loses_nothing() -> None:
    top = TopCallers(1, 4)
    for _ in range(3_000):
        place = top.places_of(["ann"], np.array([4]))
        top.add(place[[0, 0, 0, 0]], CODES, kept=0.9, each=0.1 / 4)
    np.testing.assert_allclose(top.shares[0], [0.5, 0.5, 0.5, 0.5], rtol=1e-3)
