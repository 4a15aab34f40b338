"""Jacobian-based augmentation: doubles, moves as it says, stays in range, and gets more than its seeds alone."""

from __future__ import annotations

import numpy as np
import pytest
from tests.attacks.services import CLASSES, FEATURES, Linear, facts, rows

from garrison.attacks.exam import Exam
from garrison.attacks.extraction.clones import Recipe
from garrison.attacks.extraction.jbda import Jbda, JbdaTargeted, nudged, reservoir_sample, seed_rows
from garrison.attacks.extraction.knockoff import one_hot
from garrison.attacks.extraction.seeds_alone import SeedsAlone
from garrison.attacks.extraction.students import Student
from garrison.attacks.knowledge import Knowledge, Labelled
from garrison.attacks.oracle import LabelsOnly, MeteredOracle
from garrison.types import Array

QUICK = Recipe(epochs=20, fewest_steps=100, batch=64, learning_rate=1e-2, weight_decay=0.0, averaged=0.0, balance=0.0)


def own(n: int = 20) -> Labelled:
    x = rows(n, seed=2)
    return Labelled(x, Linear().truth(x).argmax(axis=1))


def exam() -> Exam:
    x = rows(400, seed=11)
    truth = Linear().truth(x)
    return Exam(x, truth.argmax(axis=1), truth)


def taught() -> Student:
    student, x = Student(facts(), rows(300), seed=0), rows(300)
    student.learn(x, Linear().truth(x), QUICK)
    return student


def asked_in_rounds(attack: Jbda, budget: int, known: Labelled) -> list[Array]:
    service = Linear()
    attack.run(MeteredOracle(service, budget), Knowledge(rows(0), labelled=known), np.random.default_rng(0))
    return service.asked


@pytest.mark.parametrize("kind", [Jbda, JbdaTargeted])
def test_every_round_doubles_and_each_new_row_lies_a_step_away(kind: type[Jbda]) -> None:
    asked = asked_in_rounds(kind(seeds=8, step=0.1, fewest_steps=2, epochs=1), 64, own())
    assert [len(part) for part in asked] == [8, 8, 16, 32]
    moved = np.abs(asked[1][:, None] - asked[0][None]).max(axis=2).min(axis=1)
    assert (moved <= 0.1 + 1e-6).all()
    assert np.median(moved) > 0.019
    assert min(part.min() for part in asked) >= 0
    assert max(part.max() for part in asked) <= 1


def test_after_the_doublings_a_reservoir_is_moved() -> None:
    asked = asked_in_rounds(Jbda(seeds=8, doublings=1, reservoir=5, fewest_steps=2, epochs=1), 31, own())
    assert [len(part) for part in asked] == [8, 8, 5, 5, 5]
    drawn = np.concatenate([reservoir_sample(10, 4, np.random.default_rng(seed)) for seed in range(2000)])
    counts = np.bincount(drawn, minlength=10) / 2000
    assert counts == pytest.approx(np.full(10, 0.4), abs=0.05)
    assert len(set(reservoir_sample(10, 10, np.random.default_rng(0)).tolist())) == 10


def test_a_move_follows_the_clones_gradient_and_turns_round() -> None:
    student, x = taught(), rows(100, seed=3)
    labels = student.probabilities(x).argmax(axis=1)
    here = student.probabilities(x)[np.arange(100), labels]

    def after(number: int, turn: int) -> float:
        attack = Jbda(step=0.02, turn=turn)
        moved = attack.moved(student, x, labels, number, facts(), np.random.default_rng(0))
        return float((student.probabilities(moved)[np.arange(100), labels] - here).mean())

    assert after(0, 1) > 0 > after(1, 1)
    assert after(1, 0) > 0


def test_a_targeted_move_goes_to_another_class() -> None:
    student, x = taught(), rows(200, seed=3)
    labels = student.probabilities(x).argmax(axis=1)
    moved = JbdaTargeted(step=0.2).moved(student, x, labels, 0, facts(), np.random.default_rng(0))
    away = nudged(x, np.random.default_rng(0).normal(size=x.shape), 0.2, facts())  # control: as far, anywhere

    def left(rows: Array) -> float:
        return float((student.probabilities(rows).argmax(axis=1) != labels).mean())

    assert left(moved) > 0.5
    assert left(moved) > left(away) + 0.2


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("kind", [Jbda, JbdaTargeted])
def test_it_gets_more_than_its_seeds_alone(kind: type[Jbda], *, labels: bool) -> None:
    service = LabelsOnly(Linear()) if labels else Linear()
    known = Knowledge(rows(0), labelled=own())

    def accuracy(attack: Jbda | SeedsAlone, budget: int) -> float:
        trials = [attack.carry_out(service, known, exam(), budget=budget, seed=seed) for seed in (0, 1)]
        return float(np.mean([trial.scores["clone_accuracy"].mean() for trial in trials]))

    grown = accuracy(kind(seeds=20, fewest_steps=100, weight_decay=0.0), 320)
    alone = accuracy(kind(seeds=20, fewest_steps=100, weight_decay=0.0), 20)
    true = accuracy(SeedsAlone(seeds=20, fewest_steps=100, weight_decay=0.0), 20)
    assert grown > max(alone, true) + 0.03


def test_seeds_are_of_the_own_kind_where_there_are_any() -> None:
    a, b, c = rows(3, seed=1), rows(4, seed=2), rows(5, seed=3)
    known = Labelled(a, np.zeros(3, np.int64))
    rng = np.random.default_rng(0)
    for knowledge, expected, kind in (
        (Knowledge(c, b, known), a, True),
        (Knowledge(c, b), b, True),
        (Knowledge(c), c, False),
    ):
        found, own_kind = seed_rows(knowledge, rng, 9)
        assert own_kind is kind
        assert sorted(found[:, 0]) == sorted(expected[:, 0])
    told = Jbda(seeds=2, epochs=1, fewest_steps=1).carry_out(Linear(), Knowledge(c), exam(), budget=4, seed=0).told
    assert told == {"seeds": 2.0, "seeds_of_the_own_kind": 0.0, "rounds": 1.0}


def test_without_any_row_and_without_labels_the_clones_know_nothing() -> None:
    for attack in (Jbda(), SeedsAlone()):
        trial = attack.carry_out(Linear(), Knowledge(rows(0)), exam(), budget=5, seed=0)
        assert trial.queries == 0
        assert trial.scores["clone_accuracy"].mean() < 0.6
    service = Linear()
    trial = SeedsAlone(epochs=1).carry_out(service, Knowledge(rows(9), labelled=own()), exam(), budget=5, seed=0)
    assert service.asked == []
    assert trial.told == {"seeds": 20.0}


def test_a_step_without_a_range_is_one_in_deviations_and_missing_values_stay() -> None:
    wide = facts()
    wide = type(wide)(wide.shape, wide.dtype, np.full(FEATURES, -np.inf), np.full(FEATURES, np.inf), CLASSES, soft=True)
    x = rows(50) * np.float32(10)
    x[0, 0] = np.nan
    moved = nudged(x, np.ones_like(x), 0.5, wide)
    assert np.isnan(moved[0, 0])
    assert np.nanmean(moved[:, 1] - x[:, 1]) == pytest.approx(0.5 * x[:, 1].std(), rel=1e-3)


def test_a_student_keeps_what_it_learnt_and_its_copies_stay() -> None:
    student = taught()
    x = rows(200, seed=9)
    before, copy = student.probabilities(x), student.clone()
    assert (before.argmax(axis=1) == Linear().truth(x).argmax(axis=1)).mean() > 0.85
    student.learn(x, one_hot(np.zeros(200, np.int64), CLASSES), QUICK)
    assert (copy(x) == before).all()
    assert (student.probabilities(x).argmax(axis=1) == 0).mean() > 0.9
    assert student.features(x).shape[0] == 200


def test_a_students_gradients_are_those_of_its_answers() -> None:
    student, x = taught(), rows(5, seed=4)
    classes = np.array([0, 1, 2, 3, 0])
    rise = student.rise(x, classes)
    z, slopes = student.slopes(x, np.tile(np.arange(CLASSES), (5, 1)))
    assert np.abs(z - student.logits(x)).max() < 1e-5
    small = 1e-3
    for feature in range(FEATURES):
        near = x.copy()
        near[:, feature] += np.float32(small)
        change = np.log(student.probabilities(near)) - np.log(student.probabilities(x))
        assert change[np.arange(5), classes] / small == pytest.approx(rise[:, feature], abs=0.1)
        assert (student.logits(near) - z) / small == pytest.approx(slopes[:, :, feature], abs=0.1)
