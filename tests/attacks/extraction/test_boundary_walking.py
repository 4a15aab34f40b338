"""Boundary walking: pairs on both sides of a boundary of any form, and a clone trained on them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import SVC
from tests.attacks.extraction.both_ways import both_ways
from tests.attacks.extraction.planes import LabelService, fidelities, label_service, steal, table

from garrison.attacks.exam import Exam
from garrison.attacks.extraction.boundary_walking import BoundaryWalking
from garrison.attacks.extraction.retraining import UniformRetraining
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Labels
from garrison.types import Array


def test_a_ring_is_walked_around() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (600, 2))
    ring = LabelService(SVC(gamma=2.0, C=100).fit(x, np.hypot(*x.T) < 0.6), -np.ones(2), np.ones(2))
    asked: list[Array] = []

    def listen(rows: Array, labels: Labels) -> Labels:
        asked.append(rows)
        return labels

    ring.spoil = listen
    trial = steal(ring, x, BoundaryWalking(family="rbf"), budget=500)
    assert min(fidelities(trial)) > 0.97
    near = np.abs(np.hypot(*np.concatenate(asked)[100:].T) - 0.6) < 0.15
    assert near.mean() > 0.5  # of an even draw it would be 0.28


def test_three_classes_with_a_gaussian_kernel() -> None:
    target = label_service(make_pipeline(MinMaxScaler((-1, 1)), SVC(C=10)), "iris")
    test = table("iris", "all")[0]
    walked = fidelities(steal(target, test, BoundaryWalking(family="rbf"), budget=600))
    assert min(walked) > 0.92
    even = fidelities(steal(target, test, UniformRetraining(family="rbf"), budget=60))
    assert walked[1] > even[1]  # the control: a tenth of the questions, asked anywhere


def test_a_plane_from_the_walk_is_better_than_from_even_rows() -> None:
    target = label_service(make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)), "diabetes")
    test, budget = table("diabetes", "test")[0], 12 * 10
    walked = np.mean(
        [
            fidelities(steal(target, test, BoundaryWalking(family="linear", walkers=8), budget=budget, seed=s))
            for s in range(2)
        ]
    )
    even = np.mean(
        [fidelities(steal(target, test, UniformRetraining(family="linear"), budget=budget, seed=s)) for s in range(2)]
    )
    assert walked > 0.95
    assert walked > even - 0.01


@pytest.mark.slow
def test_a_sealed_model_is_stolen_over_http(tmp_path: Path) -> None:
    (x, y), (test, _) = table("iris", "train"), table("iris", "test")
    x, test = x.astype(np.float32), test.astype(np.float32)
    model = make_pipeline(MinMaxScaler((-1, 1)), LogisticRegression(max_iter=5000)).fit(x, y)
    begun = time.process_time()
    with both_ways(model, x, tmp_path, release="label") as service:
        exam = Exam(test, None, np.eye(3)[model.predict(test)])
        attack = BoundaryWalking(family="linear", walkers=8)
        trial, few = (
            attack.carry_out(service.remote, Knowledge(x[:0]), exam, budget=budget, seed=0) for budget in (600, 12)
        )
    assert trial.scores["fidelity"].mean() > 0.95
    assert time.process_time() - begun < 60  # of this process; by the clock a busy machine is slow
    assert few.scores["fidelity"].mean() < trial.scores["fidelity"].mean()
