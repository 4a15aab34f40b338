"""Network equations: small networks are met from their answers, and the paper's figure on Adult with the race as target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.neural_network import MLPClassifier
from tests.attacks.extraction.sealed import Sealed, figures, fit, race, sealed, stolen

from garrison.attacks.draws import uniform_rows
from garrison.attacks.exam import Exam
from garrison.attacks.extraction.equations import one_hot_groups, valid_rows
from garrison.attacks.extraction.network_equations import NetworkEquations
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import LabelsOnly, OracleFacts
from garrison.errors import AuditError
from garrison.guard.defenses.release import Release

IRIS = load_iris(return_X_y=True)
UNKNOWNS = 6 * 5 + 7 * 3


def network(folder: Path, *, release: Release | None = None, activation: str = "tanh") -> Sealed:
    x, y = IRIS
    model = MLPClassifier((6,), activation=activation, max_iter=800, learning_rate_init=0.01, random_state=0)
    return sealed(fit(model, x, y), x, y, folder, release=release)


@pytest.mark.slow
def test_a_small_network_is_met_and_its_activation_found(tmp_path: Path) -> None:
    model = network(tmp_path)
    trial = stolen(
        NetworkEquations(hidden=8, steps=1000, restarts=1), model.target, model.target, IRIS[0], IRIS[0], 5 * UNKNOWNS
    )
    got = figures(trial)
    assert got["fidelity"] == 1.0
    assert got["uniform_fidelity"] > 0.998
    assert got["total_variation"] < 1e-3


def test_rounded_answers_are_met_less_closely(tmp_path: Path) -> None:
    attack = NetworkEquations(hidden=8, steps=200, activation="tanh", restarts=1)
    exact, rounded = network(tmp_path / "a"), network(tmp_path / "b", release=Release(mode="rounded", decimals=1))
    sharp = figures(stolen(attack, exact.target, exact.target, IRIS[0], IRIS[0], 255))
    blunt = figures(stolen(attack, rounded.guarded(), rounded.target, IRIS[0], IRIS[0], 255))
    assert blunt["fidelity"] > 0.9
    assert sharp["total_variation"] < 0.2 * blunt["total_variation"]


def test_features_that_encode_a_category_are_seen_in_surrogate_rows() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [rng.random((50, 1)), np.eye(3)[rng.integers(3, size=50)], np.eye(2)[rng.integers(2, size=50)]], axis=1
    )
    assert one_hot_groups(rows) == [(1, 4), (4, 6)]
    assert one_hot_groups(rows[:, [0, 1, 2]]) == []
    assert one_hot_groups(rows[:0]) == []
    facts = OracleFacts((6,), np.dtype(np.float32), np.zeros(6), np.ones(6), 2, soft=True)
    drawn = valid_rows(rng, 40, facts, rows)
    assert (drawn[:, 1:4].sum(axis=1) == 1).all()
    assert (uniform_rows(rng, 40, facts)[:, 1:4].sum(axis=1) != 1).any()


def test_labels_alone_are_an_obstacle(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="labels alone"):
        NetworkEquations().carry_out(
            LabelsOnly(network(tmp_path).target), Knowledge(IRIS[0]), Exam(IRIS[0], None), budget=9, seed=0
        )


@pytest.mark.slow
def test_over_http(tmp_path: Path) -> None:
    model = network(tmp_path)
    with model.over_http(tmp_path / "state") as remote:
        got = figures(
            stolen(
                NetworkEquations(hidden=8, steps=400, activation="tanh"),
                remote,
                model.target,
                IRIS[0],
                IRIS[0],
                5 * UNKNOWNS,
            )
        )
    assert got["fidelity"] == 1.0


@pytest.mark.slow
def test_adult_race_as_in_the_paper(tmp_path: Path) -> None:
    """20 hidden units, 2,225 unknowns, 5 questions for each."""
    (x, y), (asked, _) = race("train"), race("test")
    model = sealed(fit(MLPClassifier((20,), activation="tanh", max_iter=20, random_state=0), x, y), x, y, tmp_path)
    attack = NetworkEquations(activation="tanh", restarts=1, steps=800)
    trial = stolen(attack, model.target, model.target, asked, asked[:3000], 11_125, uniform=10_000)
    got = figures(trial)
    assert min(got["fidelity"], got["uniform_fidelity"]) >= 0.998
