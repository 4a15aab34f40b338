"""Lowd and Meek's line searches: real linear models from classes alone."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from tests.attacks.extraction.both_ways import both_ways
from tests.attacks.extraction.planes import LabelService, fidelities, label_service, steal, table

from garrison.attacks.exam import Exam
from garrison.attacks.extraction.lowd_meek import LowdMeek
from garrison.attacks.knowledge import Knowledge
from garrison.errors import AuditError
from garrison.types import Array


@pytest.mark.parametrize("name", ["breast-cancer", "diabetes"])
def test_a_plane_is_found_feature_by_feature(name: str) -> None:
    for learner in (LogisticRegression(max_iter=5000), LinearSVC(max_iter=20_000)):
        target = label_service(make_pipeline(StandardScaler(), learner), name)
        trial = steal(target, table(name, "test")[0], LowdMeek(), budget=40 * target.features)
        assert min(fidelities(trial)) > 0.92  # the support vector machine on diabetes; the other three are above 0.98
        assert trial.told["features weighed"] == target.features
        assert trial.queries <= 20 * target.features


def test_a_curved_boundary_is_not_a_plane() -> None:
    """The control."""
    x = np.random.default_rng(0).uniform(-1, 1, (600, 2))
    ring = LabelService(SVC(gamma=2.0, C=100).fit(x, np.hypot(*x.T) < 0.6), -np.ones(2), np.ones(2))
    assert fidelities(steal(ring, x, LowdMeek(), budget=500))[1] < 0.9


def test_a_small_budget_weighs_some_features() -> None:
    target = label_service(make_pipeline(StandardScaler(), LogisticRegression()), "diabetes")
    trial = steal(target, table("diabetes", "test")[0], LowdMeek(), budget=70)
    assert trial.queries <= 70
    assert 0 < trial.told["features weighed"] < target.features


def test_one_class_alone_gives_that_class() -> None:
    class Always:
        classes_ = np.array([0, 1])

        def predict(self, x: Array) -> Array:
            return np.ones(len(x), dtype=np.int64)

    trial = steal(LabelService(Always(), np.zeros(3), np.ones(3)), np.zeros((2, 3)), LowdMeek(looks=50), budget=100)
    assert trial.queries <= 50
    assert fidelities(trial) == (1.0, 1.0)


def test_three_classes_are_none_of_its_business() -> None:
    target = label_service(LogisticRegression(max_iter=5000), "iris")
    with pytest.raises(AuditError, match="there are 3"):
        steal(target, table("iris", "all")[0], LowdMeek(), budget=10)


@pytest.mark.slow
def test_a_sealed_model_is_stolen_over_http(tmp_path: Path) -> None:
    (x, y), (test, _) = table("breast-cancer", "train"), table("breast-cancer", "test")
    x, test = x.astype(np.float32), test.astype(np.float32)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(x, y)
    begun = time.process_time()
    with both_ways(model, x, tmp_path, release="label") as service:
        exam = Exam(test, None, np.eye(2)[model.predict(test)])
        trial, cut = (
            LowdMeek().carry_out(service.remote, Knowledge(x[:0]), exam, budget=budget, seed=0) for budget in (900, 60)
        )
    assert trial.scores["fidelity"].mean() > 0.98
    assert time.process_time() - begun < 60  # of this process; by the clock a busy machine is slow
    assert cut.scores["fidelity"].mean() < trial.scores["fidelity"].mean()
