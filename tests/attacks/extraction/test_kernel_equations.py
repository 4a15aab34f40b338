"""Kernel equations: the representers come back, rows that the model was trained on; rounded answers give none of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel
from tests.attacks.extraction.sealed import Sealed, sealed_source, stolen

from garrison.attacks.base import Trial
from garrison.attacks.exam import Exam
from garrison.attacks.extraction.kernel_equations import KernelEquations
from garrison.attacks.extraction.separable import polynomial, rbf, search, values
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, LabelsOnly, OracleFacts
from garrison.errors import AuditError
from garrison.sealing.formats import read_source
from garrison.sealing.formats.kernels import OUTPUT, Machine, to_onnx
from garrison.types import Array, FloatArray

X, Y = load_digits(return_X_y=True)
X = X / 16
ORDER = np.random.default_rng(0).permutation(len(X))
TRAIN, HELD, SURROGATE = ORDER[:1000], ORDER[1000:1400], ORDER[1400:]
GAMMA = 0.11


@dataclass
class KernelModel:
    """A kernel logistic regression of the digits whose representers are training rows."""

    representers: int
    kind: Any = rbf_kernel
    decimals: int | None = None
    rows: Array = field(init=False)
    _model: Any = field(init=False)

    def __post_init__(self) -> None:
        self.rows = X[TRAIN[: self.representers]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model = LogisticRegression(C=10, max_iter=3000).fit(self._columns(X[TRAIN]), Y[TRAIN])

    def _columns(self, x: Array) -> Array:
        if self.kind is rbf_kernel:
            return np.asarray(rbf_kernel(x, self.rows, GAMMA))
        return np.asarray(polynomial_kernel(x, self.rows, degree=2, gamma=1 / 64, coef0=1))

    @property
    def facts(self) -> OracleFacts:
        return OracleFacts((64,), np.dtype(np.float64), np.zeros(64), X.max(axis=0), 10, soft=True)

    @property
    def solution(self) -> tuple[FloatArray, FloatArray]:
        """Weights (representers, classes) and constants."""
        return self._model.coef_.T, self._model.intercept_

    def truth(self, x: Array) -> FloatArray:
        found: FloatArray = self._model.predict_proba(self._columns(x))
        return found

    def query(self, x: Array) -> Answers:
        p, nobody = self.truth(x), np.zeros(len(x), dtype=np.bool_)
        p = p if self.decimals is None else np.round(p, self.decimals)
        return Answers(p.argmax(axis=1), p, nobody, nobody)


def attacked(model: KernelModel, attack: KernelEquations, budget: int) -> Trial:
    exam = Exam(X[HELD], Y[HELD], model.truth(X[HELD]))
    return attack.carry_out(model, Knowledge(X[SURROGATE]), exam, budget=budget, seed=0)


def nearest(trial: Trial, rows: Array) -> float:
    """Median distance of a representer to its nearest row."""
    found = np.array([image.ravel() for image in trial.pictures[0].images])
    return float(np.median(np.linalg.norm(found[:, np.newaxis] - rows[np.newaxis], axis=2).min(axis=1)))


def test_representers_are_training_rows() -> None:
    trial = attacked(KernelModel(4), KernelEquations(representers=4, side=8), 300)
    assert trial.scores["fidelity"].mean() == 1.0
    assert trial.scores["total_variation"].max() < 1e-9
    assert nearest(trial, X[TRAIN]) < 1e-6 < 0.5 < nearest(trial, X[HELD])
    assert trial.told["gamma"] == pytest.approx(GAMMA)
    assert trial.pictures[0].images[0].shape == (1, 8, 8)


def test_rounded_answers_give_no_training_row() -> None:
    model = KernelModel(4, decimals=2)
    trial = attacked(model, KernelEquations(representers=4, side=8, steps=20, restarts=1), 600)
    assert nearest(trial, X[TRAIN]) > 0.5
    assert trial.scores["total_variation"].mean() > 1e-3


@pytest.mark.slow
def test_twenty_representers_as_in_the_page() -> None:
    trial = attacked(KernelModel(20), KernelEquations(side=8), 1490)
    assert trial.scores["total_variation"].max() < 1e-9
    assert nearest(trial, X[TRAIN]) < 1e-6 < 1.0 < nearest(trial, X[HELD])


def behind_the_service(model: KernelModel, folder: Path) -> Sealed:
    machine = Machine(model.rows, *model.solution, kernel="rbf", gamma=GAMMA, coef0=0.0, degree=1)
    graph = to_onnx(machine, "kernel logistic regression", double=True)
    graph.graph.node.append(onnx.helper.make_node("Softmax", [OUTPUT], ["probabilities"], axis=1))
    graph.graph.output[0].name = "probabilities"
    onnx.save(graph, folder / "model.onnx")
    return sealed_source(read_source(folder / "model.onnx"), X, Y, folder)


@pytest.mark.slow
def test_over_http_as_in_this_process_and_not_from_labels(tmp_path: Path) -> None:
    model = KernelModel(6)
    service = behind_the_service(model, tmp_path)
    assert np.abs(service.target.raw(X[HELD]) - model.truth(X[HELD])).max() < 1e-12
    attack = KernelEquations(representers=6, side=8)
    with service.over_http(tmp_path / "state") as remote:
        trial = stolen(attack, remote, service.target, X[HELD], X[SURROGATE], 450)
    assert trial.scores["total_variation"].max() < 1e-9
    assert nearest(trial, X[TRAIN]) < 1e-6 < 0.5 < nearest(trial, X[HELD])
    with pytest.raises(AuditError, match="labels alone"):
        stolen(attack, service.with_release("label"), service.target, X[HELD], X[SURROGATE], 450)


@pytest.mark.slow
def test_a_polynomial_kernel() -> None:
    attack = KernelEquations(kernel="poly", degree=2, gamma=1 / 64, restarts=1)
    trial = attacked(KernelModel(20, kind=polynomial_kernel), attack, 1490)
    assert trial.scores["fidelity"].mean() > 0.99
    assert trial.pictures == ()


@pytest.mark.parametrize("columns", [rbf, polynomial(3, 1.0)], ids=["rbf", "poly"])
def test_slopes_are_those_of_the_kernel(columns: Any) -> None:
    rng = np.random.default_rng(0)
    x, centres = rng.normal(size=(5, 3)), rng.normal(size=(2, 3))
    k, by_centre, by_width = columns(x, centres, 0.4)
    moved = centres.copy()
    moved[1, 2] += 1e-6
    assert (columns(x, moved, 0.4)[0] - k)[:, 1] / 1e-6 == pytest.approx(by_centre[:, 1, 2], rel=1e-4)
    assert (columns(x, centres, 0.4 * np.exp(1e-6))[0] - k) / 1e-6 == pytest.approx(by_width, rel=1e-4)


def test_rows_too_far_apart_for_the_kernel_leave_a_constant() -> None:
    """As of a table whose features are not scaled: every slope is zero, and so is the matrix of the step."""
    rng = np.random.default_rng(0)
    x, centres = rng.normal(size=(30, 4)), rng.normal(size=(5, 4))
    z = rng.normal(size=(30, 1))
    far = search(rbf, 1e4 * x, z, 1e4 * centres, 1.0, free=True, steps=5)
    assert values(rbf, far, 1e4 * x) == pytest.approx(np.full((30, 1), z.mean()))
    near = search(rbf, x, z, centres, 1.0, free=True, steps=5)
    assert near.loss < 0.9 * z.var(), "the control"


@pytest.mark.parametrize("alike", [True, False])
def test_the_loss_is_that_of_the_weights(alike: bool) -> None:
    """Also where all centres give one column, which is no more than one centre explains."""
    rng = np.random.default_rng(0)
    x, z, centres = rng.normal(size=(40, 3)), rng.normal(size=(40, 2)), rng.normal(size=(8, 3))
    centres = centres[[0] * 8] if alike else centres
    start, end = (search(rbf, x, z, centres, 0.3, free=True, steps=steps) for steps in (0, 5))
    for fit in (start, end):
        assert fit.loss == pytest.approx(((values(rbf, fit, x) - z) ** 2).mean(), rel=1e-6)
    assert end.loss <= start.loss
    one = search(rbf, x, z, centres[:1], 0.3, free=True, steps=0)
    assert (start.loss == pytest.approx(one.loss)) == alike


@pytest.mark.parametrize("rows", [1, 4])
def test_fewer_rows_than_centres(rows: int) -> None:
    """As from a thief who got one exact answer: the rows are met, and nothing else is known."""
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 2))
    assert search(rbf, x, z, rng.normal(size=(5, 3)), 0.3, free=True, steps=5).loss < 1e-20


def test_numbers_beyond_double_precision_explain_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    z = x[:, :1]
    assert search(polynomial(3, 1.0), 1e120 * x, z, 1e120 * x[:5], 1.0, free=False, steps=5).loss == np.inf
    assert search(polynomial(3, 1.0), x, z, x[:5], 1.0, free=False, steps=5).loss < z.var(), "the control"


def test_labels_alone_are_an_obstacle() -> None:
    with pytest.raises(AuditError, match="labels alone"):
        KernelEquations().carry_out(LabelsOnly(KernelModel(2)), Knowledge(X), Exam(X[:3], None), budget=9, seed=0)
