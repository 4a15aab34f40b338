"""Path finding with missing features: exact, cheaper than without, and honest where the service does not answer at inner nodes."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from tests.attacks.extraction import trees
from tests.attacks.extraction.both_ways import both_ways
from tests.attacks.extraction.trees import German, exact, tree_service
from tests.attacks.services import Linear, rows

from garrison import datasets
from garrison.attacks.exam import Exam
from garrison.attacks.extraction.path_finding import PathFinding
from garrison.attacks.extraction.path_finding_missing import PathFindingMissing
from garrison.attacks.extraction.tree_service import TreeService
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, OracleFacts
from garrison.errors import AuditError
from garrison.types import Array


@pytest.fixture(scope="module")
def credit() -> German:
    return trees.german()


@pytest.mark.parametrize(("leaves", "categories"), [(26, False), (26, True), (60, False)])
def test_german_credit_is_exact_at_half_the_price(credit: German, leaves: int, *, categories: bool) -> None:
    target = tree_service(credit, leaves, categories=categories)
    known = credit.categories if categories else None
    for seed in range(1 if leaves == 60 else 2):
        trial = trees.steal(target, credit.x, PathFindingMissing(), categories=known, seed=seed)
        assert exact(trial)
        assert trial.queries <= leaves * 46
        assert trial.settled
        assert abs(trial.told["leaves found"] - leaves) <= 1  # two leaves with one answer may be one box


def test_whole_rows_alone_cost_more(credit: German) -> None:
    target = tree_service(credit, 26, categories=True)
    costs = [
        trees.steal(target, credit.x, attack, categories=credit.categories).queries
        for attack in (PathFindingMissing(), PathFinding())
    ]
    assert costs[0] < 0.7 * costs[1]


def test_a_regression_tree_too() -> None:
    data = datasets.load("diabetes", "all")
    assert data.y is not None
    x = data.x.astype(np.float32)
    model = DecisionTreeRegressor(max_leaf_nodes=20, random_state=0).fit(x, data.y)
    target = TreeService(model, x.min(axis=0), x.max(axis=0))
    trial = trees.steal(target, x, PathFindingMissing())
    assert trial.scores["fidelity"].min() == 1.0
    assert trial.queries <= 20 * 46


class Smooth(Linear):
    """A model without leaves that takes rows with missing features."""

    @property
    def facts(self) -> OracleFacts:
        found = super().facts
        return dataclasses.replace(found, missing=np.ones(found.shape, dtype=np.bool_))

    def query(self, x: Array) -> Answers:
        return super().query(np.nan_to_num(x))


def test_a_model_without_leaves_spends_the_budget_and_is_not_called_exact() -> None:
    exam = Exam(rows(5), np.zeros(5, dtype=np.int64))
    trial = PathFindingMissing().carry_out(Smooth(), Knowledge(rows(20)), exam, budget=60, seed=0)
    assert trial.queries <= 60
    assert trial.told["leaves found"] == 0
    assert not trial.settled


def test_it_says_where_features_may_not_be_missing(credit: German) -> None:
    target = tree_service(credit, 10, categories=False, missing=False)
    with pytest.raises(AuditError, match="leaves features out"):
        trees.steal(target, credit.x, PathFindingMissing())


def test_a_small_budget_is_kept_and_told(credit: German) -> None:
    target = tree_service(credit, 26, categories=False)
    trial = trees.steal(target, credit.x, PathFindingMissing(), budget=150)
    assert trial.queries <= 150
    assert not trial.settled
    assert not exact(trial)


def test_rounded_answers_are_enough(credit: German) -> None:
    target = tree_service(credit, 26, categories=False, decimals=2)
    assert trees.steal(target, credit.x, PathFindingMissing()).scores["fidelity"].mean() > 0.99


@pytest.mark.slow
def test_a_sealed_tree_sends_what_is_missing_to_a_side_and_gives_less_away(credit: German, tmp_path: Path) -> None:
    """Garrison's sealed trees answer a missing value with a leaf, never with an inner node: still exact, at several times the cost."""
    model = DecisionTreeClassifier(max_leaf_nodes=26, random_state=0).fit(credit.x, credit.y)
    begun = time.process_time()
    with both_ways(model, credit.x, tmp_path, may_be_missing=True) as service:
        nothing = np.full((1, 20), np.nan, dtype=np.float32)
        at_leaves = np.unique(model.predict_proba(credit.x), axis=0)
        assert np.abs(trees.answers(service.remote, nothing) - at_leaves).max(axis=1).min() < 1e-5
        trial = trees.steal(service.remote, credit.x, PathFindingMissing())
    assert trial.scores["fidelity"].min() == 1.0
    assert time.process_time() - begun < 60  # of this process; by the clock a busy machine is slow
    inner = trees.steal(tree_service(credit, 26, categories=False), credit.x, PathFindingMissing())
    assert trial.queries > 2 * inner.queries
