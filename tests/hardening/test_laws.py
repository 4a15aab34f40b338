"""Nats of a table: no mixture of honest laws gains evidence, an attack does."""

from __future__ import annotations

import numpy as np
import pytest

from garrison.guard.detectors.tables import MOST_NATS, ClassEdges, Edges, bins, check_edges, check_nats
from garrison.hardening.laws import law, nats_of, nearest_honest

RNG = np.random.default_rng(0)
HONEST = RNG.dirichlet(np.ones(8), 5)


def test_a_law_sums_to_one_and_has_no_hole() -> None:
    found = law(np.array([0, 0, 3]), 5)
    assert found.sum() == pytest.approx(1)
    assert found.min() > 0
    assert found.argmax() == 0
    assert law(np.array([0, 1]), 2, weights=np.array([3.0, 1.0]))[0] > 0.5


def test_the_nearest_mixture_is_found() -> None:
    weights = np.array([0.0, 0.7, 0.0, 0.3, 0.0])
    assert nearest_honest(weights @ HONEST, HONEST) == pytest.approx(weights @ HONEST, abs=5e-3)


def test_honest_evidence_does_not_grow_under_any_mixture() -> None:
    attack = RNG.dirichlet(np.full(8, 0.3))
    nats = np.array(nats_of(attack, HONEST))
    for weights in RNG.dirichlet(np.ones(5), 50):
        assert (weights @ HONEST) @ nats <= 1e-3
        assert (weights @ HONEST) @ np.exp(nats) <= 1.001
    assert attack @ nats > 0.1, "an attack's does"
    assert np.abs(nats).max() <= MOST_NATS


def test_an_attack_like_an_honest_caller_is_worth_nothing() -> None:
    assert np.abs(nats_of(HONEST[2], HONEST)).max() < 0.02


def test_values_fall_into_bins_and_missing_ones_into_the_first() -> None:
    values = np.array([0.1, 0.5, 0.7, np.nan, np.inf])
    assert bins(values, np.array([0.2, 0.6])).tolist() == [0, 1, 2, 0, 2]
    assert bins(values[:2], np.array([[0.0, 0.05], [0.6, 0.7]])).tolist() == [2, 0]


def test_tables_that_cannot_be_are_refused() -> None:
    for edges in ((2.0, 1.0), (float("nan"),), tuple(range(100))):
        with pytest.raises(ValueError, match="expected"):
            check_edges("x", edges)
    for nats in ((1.0,), (float("nan"), 0.0), (9.0, 0.0)):
        with pytest.raises(ValueError, match="expected"):
            check_nats("x", nats, 2)


def test_edges_of_classes_give_the_same_bins() -> None:
    lines = np.sort(np.round(RNG.random((5, 4)), 1), axis=1)
    values = np.array([*np.round(RNG.random(60), 1), np.nan, np.inf, -1.0, 2.0])
    number = RNG.integers(0, 7, len(values))
    plain = bins(values, lines[np.minimum(number, 4)])
    assert ClassEdges(lines).bins(values, number).tolist() == plain.tolist()
    assert bins(values, lines[0]).tolist() == bins(values, np.tile(lines[0], (len(values), 1))).tolist()
    assert ClassEdges(np.zeros((2, 0))).bins(values, number).tolist() == [0] * len(values)
    assert Edges(np.zeros(0)).bins(values).tolist() == [0] * len(values)
