"""Critical points: small ReLU networks are met to rounding, and answers that were rounded give nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.neural_network import MLPClassifier
from tests.attacks.extraction.sealed import figures, fit, sealed, stolen

from garrison.attacks.base import Trial
from garrison.attacks.exam import Exam
from garrison.attacks.extraction.critical_points import CriticalPoints
from garrison.attacks.extraction.equations import softmax
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, LabelsOnly, OracleFacts
from garrison.errors import AuditError, BudgetExhaustedError
from garrison.types import Array, FloatArray


@dataclass
class Network:
    """A network with random weights and one hidden ReLU layer."""

    features: int
    hidden: int
    outputs: int
    soft: bool = True
    decimals: int | None = None
    _weights: tuple[FloatArray, ...] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        inner = rng.normal(size=(self.features, self.hidden)) * 3 / np.sqrt(self.features)
        offsets = -inner.sum(axis=0) / 2 + 0.3 * rng.normal(size=self.hidden)
        outer = rng.normal(size=(self.hidden, self.outputs))
        self._weights = (inner, offsets, outer, rng.normal(size=self.outputs))

    @property
    def facts(self) -> OracleFacts:
        low = np.zeros(self.features)
        return OracleFacts(
            low.shape, np.dtype(np.float64), low, low + 1, self.outputs, soft=self.soft, regression=not self.soft
        )

    def truth(self, x: Array) -> FloatArray:
        inner, offsets, outer, constants = self._weights
        z: FloatArray = np.maximum(x @ inner + offsets, 0) @ outer + constants
        return softmax(z) if self.soft else z

    def query(self, x: Array) -> Answers:
        found, nobody = self.truth(x), np.zeros(len(x), dtype=np.bool_)
        found = found if self.decimals is None else np.round(found, self.decimals)
        labels = found.argmax(axis=1).astype(np.int64)
        return Answers(labels, found, nobody, nobody) if self.soft else Answers(labels, None, nobody, nobody, found)


def attacked(network: Network, budget: int) -> Trial:
    x = np.random.default_rng(3).random((2000, network.features))
    exam = Exam(x, None, network.truth(x))
    trial = CriticalPoints().carry_out(network, Knowledge(x[:5]), exam, budget=budget, seed=0)
    assert trial.queries <= budget
    return trial


def test_probabilities_of_a_relu_network_give_it_away() -> None:
    trial = attacked(Network(10, 10, 3), 2000)
    assert trial.told["units"] == 10
    assert trial.scores["total_variation"].max() < 1e-9
    assert trial.queries < 1000


def test_values_of_a_relu_network_give_it_away() -> None:
    trial = attacked(Network(10, 10, 3, soft=False), 2000)
    assert trial.scores["value_error"].max() < 1e-9
    single = attacked(Network(20, 6, 1, soft=False), 4000)
    assert single.scores["value_error"].max() < 1e-8


def test_a_budget_that_does_not_suffice_gives_what_was_found() -> None:
    trial = attacked(Network(10, 10, 3), 150)
    assert 0 < trial.told["units"] < 10
    assert trial.scores["total_variation"].max() > 1e-3


@dataclass
class Stopping(Network):
    """Answers its first rows, and then no more."""

    answers: int = 40
    asked: int = 0

    def query(self, x: Array) -> Answers:
        if self.asked >= self.answers:
            raise BudgetExhaustedError("no")
        self.asked += len(x)
        return super().query(x)


def test_a_service_that_stops_answering_ends_the_search() -> None:
    trial = attacked(Stopping(10, 10, 3), 400)
    assert trial.unanswered > 0
    assert trial.told["units"] < 10
    assert attacked(Stopping(10, 10, 3, answers=2000), 2000).told["units"] == 10


def test_rounded_answers_give_the_best_linear_model() -> None:
    rounded, whole = attacked(Network(10, 10, 3, decimals=2), 2000), attacked(Network(10, 10, 3), 2000)
    assert rounded.told["units"] == 0
    assert rounded.scores["fidelity"].mean() < 0.99 < whole.scores["fidelity"].mean()


def test_labels_alone_are_an_obstacle() -> None:
    with pytest.raises(AuditError, match="labels alone"):
        CriticalPoints().carry_out(
            LabelsOnly(Network(4, 2, 3)), Knowledge(np.zeros((1, 4))), Exam(np.zeros((1, 4)), None), budget=9, seed=0
        )


@pytest.mark.slow
def test_a_large_layer() -> None:
    trial = attacked(Network(784, 16, 10), 40_000)
    assert trial.told["units"] == 16
    assert trial.scores["total_variation"].max() < 1e-7


@pytest.mark.slow
def test_a_trained_network_behind_the_service(tmp_path: Path) -> None:
    x, y = load_iris(return_X_y=True)
    model = sealed(fit(MLPClassifier((8,), max_iter=500, random_state=0), x, y), x, y, tmp_path)
    with model.over_http(tmp_path / "state") as remote:
        got = figures(stolen(CriticalPoints(), remote, model.target, x, x, 3000))
    assert got["fidelity"] == got["uniform_fidelity"] == 1.0
    assert got["total_variation"] < 1e-6
    with pytest.raises(AuditError, match="labels alone"):
        stolen(CriticalPoints(), model.with_release("label"), model.target, x, x, 3000)
