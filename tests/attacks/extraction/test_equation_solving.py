"""Equation solving: exact from d + 1 answers, for models of its two families, and honest about all others."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import LinearSVC
from tests.attacks.extraction.sealed import Sealed, figures, fit, race, sealed
from tests.attacks.extraction.sealed import stolen as stolen_from
from tests.attacks.services import CLASSES, FEATURES, Linear, facts, rows

from garrison.attacks.draws import uniform_rows
from garrison.attacks.exam import Exam
from garrison.attacks.extraction.equation_solving import EquationSolving
from garrison.attacks.extraction.equations import Basis
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, LabelsOnly, OracleFacts
from garrison.errors import AuditError
from garrison.guard.defenses.release import Release
from garrison.types import Array, FloatArray

X64, Y = load_digits(return_X_y=True)
X64 = X64 / 16
X = X64.astype(np.float32)


@dataclass
class Digits:
    """A scikit-learn model of the 64-feature digits behind single precision, its answers rounded where asked for."""

    model: Any
    decimals: int | None = None

    @property
    def facts(self) -> OracleFacts:
        return OracleFacts((64,), np.dtype(np.float32), np.zeros(64), np.ones(64), 10, soft=True)

    def query(self, x: Array) -> Answers:
        p = self.model.predict_proba(x).astype(np.float32)
        if self.decimals is not None:
            p = np.round(p, self.decimals)
        nobody = np.zeros(len(x), dtype=np.bool_)
        return Answers(p.argmax(axis=1), p, nobody, nobody)


def trained(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence and deprecations are not what is tested
        return model.fit(X[:1000], Y[:1000])


@pytest.fixture(scope="module")
def softmax() -> Any:
    return trained(LogisticRegression(max_iter=500))


def stolen(oracle: Digits, budget: int, attack: EquationSolving | None = None) -> dict[str, float]:
    exam = Exam(X[1000:], Y[1000:], oracle.model.predict_proba(X[1000:]))
    trial = (attack or EquationSolving()).carry_out(oracle, Knowledge(X[:1000]), exam, budget=budget, seed=0)
    assert trial.queries <= budget
    return {name: float(values.mean()) for name, values in trial.scores.items()}


def test_softmax_is_exact_from_one_question_more_than_features(softmax: Any) -> None:
    got = stolen(Digits(softmax), 65)
    assert got["fidelity"] == 1.0
    assert got["total_variation"] < 1e-5


def test_fewer_questions_than_unknowns_are_not_exact(softmax: Any) -> None:
    assert stolen(Digits(softmax), 40)["fidelity"] < 0.95


def test_rounded_answers_need_more_questions(softmax: Any) -> None:
    assert stolen(Digits(softmax, decimals=2), 650)["fidelity"] >= 0.969  # as the paper measured
    assert stolen(Digits(softmax, decimals=2), 65)["fidelity"] < 0.9


def test_surrogate_rows_serve_as_well(softmax: Any) -> None:
    assert stolen(Digits(softmax), 300, EquationSolving(questions="surrogate"))["fidelity"] > 0.99


def test_one_vs_rest_is_found_by_descent() -> None:
    model = trained(OneVsRestClassifier(LogisticRegression(max_iter=500)))
    got = stolen(Digits(model), 650)
    assert got["fidelity"] > 0.99
    assert got["total_variation"] < 1e-3


def test_a_model_of_neither_family_gives_no_clone_that_deserves_the_name(softmax: Any) -> None:
    model = trained(MLPClassifier((32,), max_iter=60, random_state=0))
    assert stolen(Digits(softmax), 650)["total_variation"] < 1e-5
    assert stolen(Digits(model), 650)["total_variation"] > 0.02


def test_labels_alone_are_refused_before_anything_is_asked() -> None:
    service = Linear()
    with pytest.raises(AuditError, match="labels alone"):
        EquationSolving().carry_out(LabelsOnly(service), Knowledge(rows(5)), Exam(rows(3), None), budget=9, seed=0)
    assert service.asked == []


def test_refused_rows_cost_queries_and_no_more() -> None:
    x = rows(300, seed=4)
    exam = Exam(x, None, Linear().truth(x))
    some = Linear(refuses_above=0.5)
    trial = EquationSolving().carry_out(some, Knowledge(rows(10)), exam, budget=600, seed=0)
    assert trial.unanswered > 0
    assert trial.scores["fidelity"].mean() > 0.95


def test_uniform_rows_keep_to_the_stated_range_in_every_dtype() -> None:
    rng = np.random.default_rng(0)
    low, high = np.array([-3.0, 0.1, 5.0]), np.array([4.0, 0.1, 9.0])
    for dtype in (np.float16, np.float32, np.int64, np.uint8):
        lowest = np.maximum(low, 0) if dtype is np.uint8 else low
        limits: tuple[FloatArray, FloatArray] = (
            (np.ceil(lowest), np.ceil(high))
            if np.dtype(dtype).kind in "iu"
            else (lowest.astype(dtype), high.astype(dtype))
        )
        told = OracleFacts((3,), np.dtype(dtype), *limits, 2, soft=True)
        x = uniform_rows(rng, 500, told)
        assert x.dtype == dtype
        assert (x >= limits[0]).all()
        assert (x <= limits[1]).all()
    assert len(np.unique(x[:, 0])) > 2


def test_a_feature_that_never_varied_gets_no_weight() -> None:
    x = rows(20)
    x[:, 2] = 0.5
    basis = Basis.over(x)
    other = x.copy()
    other[:, 2] = 0.9
    np.testing.assert_array_equal(basis.design(x), basis.design(other))
    assert basis.design(x).shape == (20, FEATURES + 1)


def test_a_service_without_stated_ranges_is_asked_surrogate_rows() -> None:
    class Unbounded(Linear):
        @property
        def facts(self) -> OracleFacts:
            known = facts()
            return OracleFacts(known.shape, known.dtype, known.low - np.inf, known.high, CLASSES, soft=True)

    service, surrogate = Unbounded(), rows(40, seed=9)
    EquationSolving().carry_out(service, Knowledge(surrogate), Exam(rows(3), None), budget=20, seed=0)
    asked = np.concatenate(service.asked)
    assert {row.tobytes() for row in asked} <= {row.tobytes() for row in surrogate}


def double(model: Any, folder: Path, y: Any = Y, *, release: Release | None = None, double: bool = True) -> Sealed:
    """A model of the digits, trained and sealed in double precision."""
    return sealed(fit(model, X64[:1000], y[:1000]), X64, y, folder, double=double, release=release)


def test_a_model_sealed_in_double_precision_is_met_to_rounding(tmp_path: Path) -> None:
    model = double(LogisticRegression(max_iter=500), tmp_path)
    got = figures(stolen_from(EquationSolving(), model.target, model.target, X64[1000:], X64[:1000], 65))
    assert got["total_variation"] < 1e-9
    assert got["fidelity"] == got["uniform_fidelity"] == 1.0


def test_a_model_sealed_in_single_precision_is_met_to_its_rounding(tmp_path: Path) -> None:
    model = double(LogisticRegression(max_iter=500), tmp_path, double=False)
    got = figures(stolen_from(EquationSolving(), model.target, model.target, X64[1000:], X64[:1000], 65))
    assert 1e-9 < got["total_variation"] < 1e-5


def test_one_vs_rest_is_exact_in_double_precision(tmp_path: Path) -> None:
    model = double(OneVsRestClassifier(LogisticRegression(max_iter=500)), tmp_path)
    got = figures(stolen_from(EquationSolving(), model.target, model.target, X64[1000:], X64[:1000], 650))
    assert got["total_variation"] < 1e-6


@pytest.mark.parametrize("two", [False, True], ids=["ten classes", "two classes"])
def test_the_scores_of_a_linear_support_vector_machine_are_solved(tmp_path: Path, *, two: bool) -> None:
    model = double(LinearSVC(), tmp_path, (Y > 4).astype(int) if two else Y)
    assert model.target.facts.scores
    got = figures(stolen_from(EquationSolving(), model.target, model.target, X64[1000:], X64[:1000], 65))
    assert got["fidelity"] == got["uniform_fidelity"] == 1.0
    assert got["total_variation"] < 1e-9


def test_a_linear_regressor_is_solved(tmp_path: Path) -> None:
    x, y = load_diabetes(return_X_y=True)
    model = sealed(fit(Ridge(), x, y), x, y, tmp_path)
    got = figures(stolen_from(EquationSolving(), model.target, model.target, x, x, 11))
    assert got["fidelity"] == 1.0
    assert got["value_error"] < 1e-9


@pytest.mark.slow
def test_over_http_as_in_this_process_and_not_from_labels(tmp_path: Path) -> None:
    model = double(LogisticRegression(max_iter=500), tmp_path)
    with model.over_http(tmp_path / "state") as remote:
        trial = stolen_from(EquationSolving(), remote, model.target, X64[1000:], X64[:1000], 65)
    assert trial.queries == 65
    assert figures(trial)["total_variation"] < 1e-9
    with pytest.raises(AuditError, match="labels alone"):
        stolen_from(EquationSolving(), model.with_release("label"), model.target, X64[1000:], X64[:1000], 650)


@pytest.mark.slow
def test_adult_race_as_in_the_paper(tmp_path: Path) -> None:
    (x, y), (asked, _) = race("train"), race("test")
    model = sealed(fit(LogisticRegression(max_iter=300), x, y), x, y, tmp_path)
    trial = stolen_from(EquationSolving(), model.target, model.target, asked, asked[:3000], 530, uniform=10_000)
    got = figures(trial)
    assert got["fidelity"] == got["uniform_fidelity"] == 1.0


@dataclass
class Misinformed(Digits):
    """Answers some rows with another row's probabilities, the same ones each time."""

    share: float = 0.3

    def query(self, x: Array) -> Answers:
        found = super().query(x)
        p = np.asarray(found.probabilities)
        wrong = (np.abs(x.sum(axis=1) * 997) % 1.0) < self.share
        p = np.where(wrong[:, np.newaxis], np.roll(p, 3, axis=1), p)
        return Answers(p.argmax(axis=1), p, found.refused, found.uncertain)


def test_a_minority_of_misinformed_rows_is_found_and_left_out(softmax: Any) -> None:
    assert stolen(Misinformed(softmax), 260)["fidelity"] > 0.99
    assert stolen(Misinformed(softmax, share=0.9), 260)["fidelity"] < 0.7
