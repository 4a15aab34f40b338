"""Path finding: exact on real trees, also where leaves share an identity, and honest where it cannot be."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from tests.attacks.extraction import trees
from tests.attacks.extraction.both_ways import both_ways
from tests.attacks.extraction.trees import German, everywhere, exact, tree_service
from tests.attacks.services import Linear, rows

from garrison import datasets
from garrison.attacks.base import Trial
from garrison.attacks.exam import Exam
from garrison.attacks.extraction import leaves
from garrison.attacks.extraction.boxes import Space
from garrison.attacks.extraction.path_finding import Explorer, PathFinding
from garrison.attacks.extraction.proving import Draw, Prover
from garrison.attacks.extraction.tree_service import TreeService
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, LabelsOnly, MeteredOracle, OracleFacts
from garrison.errors import AuditError
from garrison.types import Array

_SAID = ("answered otherwise, drawn evenly, at most", "last check, inputs drawn evenly")


@dataclass
class Tree:
    """A scikit-learn tree behind single precision; whole-number inputs where asked for, answers rounded where asked for."""

    model: Any
    x: Array
    dtype: type = np.float32
    decimals: int | None = None

    @property
    def facts(self) -> OracleFacts:
        low, high = self.x.min(axis=0), self.x.max(axis=0)
        return OracleFacts(low.shape, np.dtype(self.dtype), low, high, len(self.model.classes_), soft=True)

    def query(self, x: Array) -> Answers:
        p = self.model.predict_proba(x.astype(np.float32)).astype(np.float32)
        if self.decimals is not None:
            p = np.round(p, self.decimals)
        nobody = np.zeros(len(x), dtype=np.bool_)
        return Answers(p.argmax(axis=1), p, nobody, nobody)

    def everywhere(self, count: int = 4000) -> Array:
        """Points from the whole range of the features."""
        low, high = self.facts.low, self.facts.high
        x = low + np.random.default_rng(9).random((count, len(low))) * (high - low)
        found: Array = (np.floor(x) if self.dtype is not np.float32 else x).astype(self.dtype)
        return found


@pytest.fixture(scope="module")
def german() -> tuple[Array, Array]:
    data = datasets.load("german-credit")
    assert data.y is not None
    return data.x.astype(np.float32), data.y


@pytest.fixture(scope="module")
def credit() -> German:
    return trees.german()


def tree(data: tuple[Array, Array], count: int, **options: Any) -> Tree:
    x, y = data
    return Tree(DecisionTreeClassifier(max_leaf_nodes=count, random_state=0).fit(x, y), x, **options)


def steal(target: Tree, x: Array, budget: int = 20_000, attack: PathFinding | None = None, seed: int = 0) -> Trial:
    exam = Exam(x, None, target.query(x).probabilities)
    return (attack or PathFinding()).carry_out(target, Knowledge(target.x[:300]), exam, budget=budget, seed=seed)


def test_a_tree_of_flowers_is_found_to_the_last_leaf() -> None:
    x, y = load_iris(return_X_y=True)
    target = tree((x.astype(np.float32), y), 8)
    for where in (target.x, target.everywhere()):
        trial = steal(target, where, attack=PathFinding(doubts=100))  # its leaves are pure, so most share their answer
        assert trial.scores["fidelity"].mean() > 0.995  # but for slivers of width epsilon
        assert trial.scores["total_variation"].mean() < 5e-3
    assert trial.queries < 8 * 300


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_german_credit_is_exact_although_leaves_share_an_identity(credit: German, dtype: type) -> None:
    target = tree_service(credit, 26, categories=False, missing=False, dtype=dtype)
    identities = np.unique(target.answers[target.tree.children_left < 0], axis=0)
    assert len(identities) < target.leaves == 26
    trials = [trees.steal(target, credit.x.astype(dtype), PathFinding(), seed=seed) for seed in range(2)]
    assert all(exact(trial) for trial in trials)
    assert max(trial.queries for trial in trials) <= 26 * 60
    assert all(trial.settled for trial in trials)


def test_categories_are_split_value_by_value(credit: German) -> None:
    """A tree that asks "is purpose radio" has leaves that hold some values of a category and not their neighbours."""
    target = tree_service(credit, 26, categories=True, missing=False)
    known, blind = (
        trees.steal(target, credit.x, PathFinding(), categories=credit.categories, knowledge=knowledge)
        for knowledge in (None, Knowledge(everywhere(target, {}, 300)))
    )
    assert exact(known)
    assert known.queries <= 26 * 60
    assert not exact(blind)  # the control: who takes the numbers of categories for numbers cannot draw them evenly


def test_the_thresholds_are_the_trees_own(credit: German) -> None:
    target = tree_service(credit, 26, categories=False, missing=False)
    space = Space.of(target.facts, 1e-3)
    tree = leaves.Tree(MeteredOracle(target, 5000), space)
    explorer = Explorer(tree, np.random.default_rng(0), np.empty((0, 20)), 8)
    explorer.explore([space.draw(explorer.rng, space.whole)])
    found = {i: np.array([tree.threshold(*pair) for pair in pairs]) for i, pairs in tree.thresholds.items()}
    for i, true in target.thresholds().items():
        # All of its thresholds are whole numbers and a half, so the roundest number between two answers is the true one.
        assert set(true) <= set(np.round(found[i], 9)), i


def test_a_regression_tree_is_known_by_its_values() -> None:
    data = datasets.load("diabetes", "all")
    assert data.y is not None
    x = data.x.astype(np.float32)
    model = DecisionTreeRegressor(max_leaf_nodes=20, random_state=0).fit(x, data.y)
    target = TreeService(model, x.min(axis=0), x.max(axis=0), missing=False)
    assert target.facts.regression
    trial = trees.steal(target, x, PathFinding())
    assert trial.scores["fidelity"].min() == 1.0
    assert trial.scores["value_error"].max() < 1e-6
    assert trial.queries <= 20 * 100


def test_letters_have_many_classes_and_whole_numbers() -> None:
    data = datasets.load("letters", "train")
    assert data.y is not None
    x = data.x.astype(np.int32)
    model = DecisionTreeClassifier(max_leaf_nodes=40, random_state=0).fit(x, data.y)
    target = TreeService(model, x.min(axis=0), x.max(axis=0), missing=False, dtype=np.int32)
    assert exact(trees.steal(target, x[:2000], PathFinding()))


def test_rounded_answers_do_not_hide_the_leaves(german: tuple[Array, Array]) -> None:
    target = tree(german, 26, decimals=1)
    assert steal(target, target.x).scores["fidelity"].mean() > 0.99


def test_a_small_budget_is_kept_and_gives_a_part_of_the_tree(german: tuple[Array, Array]) -> None:
    target = tree(german, 26)
    few, many = steal(target, target.x, budget=200), steal(target, target.x)
    assert few.queries <= 200
    assert few.scores["total_variation"].mean() > many.scores["total_variation"].mean() + 0.05


def test_without_its_checks_it_takes_several_leaves_for_one(german: tuple[Array, Array]) -> None:
    """The control of the checks: lines alone do not find what shares an identity."""
    target = tree(german, 60)
    attacks = (PathFinding(checks=0, doubts=0), PathFinding())
    without, checked = (steal(target, target.everywhere(), attack=a).scores["fidelity"].mean() for a in attacks)
    assert checked > 0.99
    assert checked > without + 0.003


@pytest.mark.parametrize("data", ["unscaled", "wine"])
def test_a_tree_that_answers_like_labels_on_unscaled_features_is_exact(data: str) -> None:
    """All leaves share their answers with others. The control does not ask again at the end, and does not claim to have."""
    target = tree(trees.table(data), 20, decimals=0)
    where = target.everywhere(10_000)
    trial, control = (steal(target, where, attack=attack) for attack in (PathFinding(), PathFinding(proof=0)))
    assert trial.scores["fidelity"].mean() >= 0.999
    assert trial.settled
    wrong = 1.0 - control.scores["fidelity"].mean()
    assert not control.settled
    assert control.told["answered otherwise, drawn evenly, at most"] == 1.0
    assert data != "unscaled" or wrong > 0.003


def test_what_it_says_of_itself_bounds_what_is_wrong() -> None:
    """The bound is what the agreeing inputs bear, and covers the truth; a check cut short by the budget claims less."""
    target = tree(trees.table("unscaled"), 20, decimals=0)
    where = target.everywhere(10_000)
    bounds = []
    for budget in (400, 2500, 20_000):
        trial = steal(target, where, budget=budget)
        bound, asked = (trial.told[f"{what}"] for what in _SAID)
        assert 1.0 - trial.scores["fidelity"].mean() <= bound
        assert asked > 0
        bounds.append(bound)
    assert bounds[0] > 0.2 > 0.02 > bounds[2]
    blind = steal(target, where, attack=PathFinding(proof=0))
    assert [blind.told[what] for what in _SAID] == [1.0, 0.0]


def test_the_bound_is_clopper_and_pearsons_shared_over_the_checks() -> None:
    target = tree(trees.table("unscaled"), 4)
    found = leaves.Tree(MeteredOracle(target, 5000), Space.of(target.facts, 1e-3))
    prover = Prover(found, np.random.default_rng(0), target.x[:50].astype(np.float64), 300)
    assert prover.bound(Draw.EVEN) == 1.0
    points, identities = prover.errors()  # nothing is known yet
    assert len(points) == len(identities) == 60
    explorer = Explorer(found, prover.rng, prover.surrogate, 8)
    explorer.mend(points, identities)
    assert prover.errors()[1] == ()
    n = prover.asked[Draw.EVEN]
    assert n >= 100
    p = prover.bound(Draw.EVEN)
    assert (1 - p) ** n == pytest.approx(0.05 / (2 * 3))  # the second check
    assert set(prover.asked) == set(Draw)
    assert found.oracle.rows < 5000


def searched(threshold: float) -> tuple[float, float, int]:
    """Where a lone threshold between 0 and 200 is found to lie, and in how many questions."""
    x = np.array([[0.0], [200.0]], dtype=np.float32)
    model = DecisionTreeClassifier(max_leaf_nodes=2).fit(x, [0, 1])
    model.tree_.threshold[0] = threshold
    found = leaves.Tree(MeteredOracle(Tree(model, x), 500), Space.of(Tree(model, x).facts, 1e-3))
    near, far = found.change(np.array([0.0]), 0, 200.0)
    return near, far, found.oracle.rows


def test_a_round_threshold_is_found_to_the_last_bit_in_few_questions() -> None:
    for threshold in (37.5, 123.0, 0.25):
        near, far, asked = searched(threshold)
        assert near == threshold
        assert far == np.nextafter(np.float32(threshold), np.float32(200))
        assert asked <= 16
    odd = float(np.pi * 40)
    near, far, asked = searched(odd)
    assert near <= odd < far <= near + 1e-3  # control: any other number, as exactly as was asked
    assert asked > 16


def test_a_smooth_model_has_no_leaves_to_find() -> None:
    exam = Exam(rows(300, seed=3), None, Linear().truth(rows(300, seed=3)))
    trial = PathFinding(epsilon=0.1).carry_out(Linear(), Knowledge(rows(50)), exam, budget=2000, seed=0)
    assert trial.scores["total_variation"].mean() > 0.05


def test_what_it_cannot_do_it_says_before_it_asks() -> None:
    service = Linear()
    with pytest.raises(AuditError, match="neither"):
        PathFinding().carry_out(LabelsOnly(service), Knowledge(rows(5)), Exam(rows(3), None), budget=9, seed=0)
    assert service.asked == []


def test_refused_places_are_boxes_too(german: tuple[Array, Array]) -> None:
    class Refusing(Tree):
        def query(self, x: Array) -> Answers:
            found = super().query(x)
            refused = x[:, 1] > 40  # durations above 40 months
            p = np.where(refused[:, np.newaxis], np.nan, self.model.predict_proba(x)).astype(np.float32)
            return Answers(np.where(refused, -1, found.labels), p, refused, found.uncertain)

    plain = tree(german, 10)
    trial = steal(Refusing(plain.model, plain.x), plain.x[plain.x[:, 1] <= 40])
    assert trial.unanswered > 0
    assert trial.scores["fidelity"].mean() > 0.99


@pytest.mark.slow
def test_a_sealed_tree_is_stolen_over_http_and_rounding_or_labels_are_seen(credit: German, tmp_path: Path) -> None:
    model = DecisionTreeClassifier(max_leaf_nodes=26, random_state=0).fit(credit.x, credit.y)
    with both_ways(model, credit.x, tmp_path) as service:
        begun = time.process_time()
        trial = trees.steal(service.remote, credit.x, PathFinding())
        assert time.process_time() - begun < 60  # of this process; by the clock a busy machine is slow
        assert trial.scores["fidelity"].min() == trial.scores["uniform_fidelity"].min() == 1.0
        assert trial.scores["total_variation"].mean() < 1e-3
        assert trees.steal(service.local, credit.x, PathFinding()).queries == trial.queries
    (tmp_path / "labels").mkdir()
    with both_ways(model, credit.x, tmp_path / "labels", release="label") as service:  # the control
        assert "neither" in PathFinding().obstacle(service.remote.facts)
