"""The bandit: it finds the groups that pay, forgets nothing, and draws no row twice."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from tests.attacks.services import CLASSES, Linear, rows

from garrison.attacks.exam import Exam
from garrison.attacks.extraction.clusters import Groups, clusters, projected
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.attacks.extraction.knockoff_adaptive import (
    Bandit,
    Judge,
    KnockoffAdaptive,
    Reward,
    meanings,
    sure_classes,
)
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, LabelsOnly, MeteredOracle, Oracle
from garrison.types import Array

ALL = tuple(Reward)


def divided(groups: Groups, rate: float = 1.0, seed: int = 0) -> Bandit:
    bandit = Bandit(np.random.default_rng(seed).permutation(len(groups)), 25, rate)
    bandit.divide("looks", groups, int(groups.max()) + 1)
    return bandit


def trained_bandit(pays: tuple[float, ...], rounds: int, rate: float = 1.0) -> Bandit:
    groups = np.repeat(np.arange(len(pays)), 500)
    bandit, noise = divided(groups, rate), np.random.default_rng(1)
    for _ in range(rounds // 10):
        drawn = bandit.draw(10)
        bandit.learn(drawn, [pays[groups[row]] + 0.2 * noise.normal() for row in drawn])
    return bandit


def test_the_policy_moves_to_the_group_that_pays_and_else_stays() -> None:
    paying = trained_bandit((0.9, 0.1, 0.1, 0.1), 300).policy("looks")
    alike = trained_bandit((0.5, 0.5, 0.5, 0.5), 300).policy("looks")
    assert paying[0] > 0.45
    assert alike.max() < 0.4  # control


def test_a_step_is_the_papers() -> None:
    bandit = divided(np.array([0, 0, 1, 1]))
    bandit.learn(np.array([0]), [0.5])  # the first reward is its own baseline
    assert bandit.policy("looks").tolist() == [0.5, 0.5]
    bandit.learn(np.array([0]), [1.0])  # a = 1/2, r - mean r = 0.5, pi = 0.5: H = (0.125, -0.125)
    expected = np.exp([0.125, -0.125])
    assert bandit.policy("looks") == pytest.approx(expected / expected.sum())


def test_no_row_is_drawn_twice_and_empty_groups_are_left() -> None:
    bandit = divided(np.array([0] * 3 + [1] * 40 + [2] * 7))
    drawn = np.concatenate([bandit.draw(20), bandit.draw(20), bandit.draw(20)])
    assert sorted(drawn.tolist()) == list(range(50))
    assert bandit.left == 0
    assert len(bandit.draw(5)) == 0


def test_where_nothing_is_learnt_the_order_stays_and_where_it_is_groups_come_as_often_as_their_chance() -> None:
    order = np.random.default_rng(4).permutation(9000)
    bandit = Bandit(order, 25, 1.0)
    groups = np.arange(9000) % 3
    bandit.divide("looks", groups, 3)
    assert (bandit.draw(700) == order[:700]).all()
    bandit.learn(np.array([0]), [0.0])
    bandit.learn(np.array([0, 3]), [2.0, 2.0])  # group 0 is preferred now
    chances = bandit.policy("looks")
    assert chances[0] > 0.5
    assert np.bincount(groups[bandit.draw(600)], minlength=3) / 600 == pytest.approx(chances, abs=0.07)


def test_rows_are_grouped_by_what_the_clone_takes_them_for() -> None:
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]])
    assert meanings(p, 2).tolist() == [1, 0, 3, 2]
    assert meanings(p, 1).tolist() == [0, 0, 1, 1]


def test_rewards_are_what_they_say() -> None:
    sure, torn = np.array([0.9, 0.1, 0.0]), np.array([0.5, 0.5, 0.0])
    assert Judge((Reward.CERTAINTY,), 5).reward(sure, sure) == pytest.approx(0.8)
    assert Judge((Reward.CERTAINTY,), 5).reward(torn, sure) == 0
    assert Judge((Reward.LOSS,), 5).reward(sure, sure) == pytest.approx(0)
    assert Judge((Reward.LOSS,), 5).reward(sure, np.array([0.1, 0.1, 0.8])) > 0.7
    judge = Judge((Reward.DIVERSITY,), 5)
    judge.reward(sure, sure)
    assert judge.reward(sure, sure) == pytest.approx(0)
    assert judge.reward(np.array([0.0, 0.0, 1.0]), sure) == pytest.approx(1.0)
    assert 0 <= Judge(ALL, 5).reward(sure, torn) <= 1


def test_blobs_are_groups_of_their_own() -> None:
    rng = np.random.default_rng(0)
    middle = rng.normal(size=(5, 200)) * 10
    kind = rng.integers(0, 5, 600)
    x = (middle[kind] + rng.normal(size=(600, 200))).astype(np.float32)
    found = clusters(x, 5, np.random.default_rng(3))
    for group in range(5):
        assert np.bincount(kind[found == group], minlength=5).max() >= 0.99 * (found == group).sum()
    assert (found == clusters(x, 5, np.random.default_rng(3))).all()
    assert projected(x, rng).shape == (600, 64)
    assert len(np.unique(clusters(np.ones((9, 3), np.float32), 4, rng))) == 1


class Dull(Linear):
    """Answers rows whose first feature is 0 with "I cannot tell", as a service does to what it does not know."""

    def query(self, x: Array) -> Answers:
        found = super().query(x)
        dull = x[:, 0] == 0
        p = np.where(dull[:, None], np.float32(1 / CLASSES), self.truth(x))
        return Answers(p.argmax(axis=1).astype(np.int64), p, found.refused, found.uncertain)


def pool() -> Array:
    """Three rows in four are of a kind that the service says nothing about, and fall into as many groups as the others."""
    x = rows(2000, seed=4)
    x[:1500, 0] = 0
    x[1500:, 0] = 0.9
    x[:, 1:] = np.where(x[:, 1:] > 0.5, np.float32(0.95), np.float32(0.05))
    return x


def useful_share(attack: Knockoff, oracle: Oracle) -> float:
    service = Dull()
    attack.run(MeteredOracle(service, 600), Knowledge(pool()), np.random.default_rng(0))
    return float((np.concatenate(service.asked)[:, 0] != 0).mean())


def test_it_asks_what_pays_and_the_controls_do_not() -> None:
    adaptive = KnockoffAdaptive(actions=40, rate=3.0, rows_a_round=50, epochs=1, fewest_steps=1)
    blind = KnockoffAdaptive(actions=40, rows_a_round=50, rewards=(), epochs=1, fewest_steps=1)
    learnt, unlearnt, random = (
        useful_share(attack, Dull()) for attack in (adaptive, blind, Knockoff(epochs=1, fewest_steps=1))
    )
    assert 0.2 < random < 0.3
    assert learnt > unlearnt + 0.15
    assert learnt > random + 0.15


def test_without_rewards_it_is_the_random_thief() -> None:
    """The control: the same rows in the same order, and the same clone."""
    x = rows(40, seed=5)
    exam = Exam(x, Linear().truth(x).argmax(axis=1))
    random, blind = Linear(), Linear()
    training = {"epochs": 2, "fewest_steps": 1}
    trials = [
        attack.carry_out(service, Knowledge(rows(300)), exam, budget=90, seed=2)
        for attack, service in (
            (Knockoff(**training), random),
            (KnockoffAdaptive(rewards=(), rows_a_round=20, actions=5, **training), blind),
        )
    ]
    assert (np.concatenate(random.asked) == np.concatenate(blind.asked)).all()
    assert (trials[0].scores["clone_accuracy"] == trials[1].scores["clone_accuracy"]).all()


class Vague(Dull):
    """Never sure of its last class, as a service is not that is asked about nothing of its own kind."""

    def query(self, x: Array) -> Answers:
        found = super().query(x)
        assert found.probabilities is not None
        p = found.probabilities.copy()
        vague = p.argmax(axis=1) == CLASSES - 1
        p[vague] = 0.4 * p[vague] + 0.6 / CLASSES
        return Answers(p.argmax(axis=1).astype(np.int64), p, found.refused, found.uncertain)


def asked_by(attack: Knockoff, service: Linear) -> Array:
    attack.run(MeteredOracle(service, 600), Knowledge(pool()), np.random.default_rng(0))
    found: Array = np.concatenate(service.asked)
    return found


def test_where_a_class_is_never_answered_surely_it_asks_as_the_random_thief() -> None:
    adaptive = KnockoffAdaptive(actions=40, rate=3.0, rows_a_round=50, epochs=1, fewest_steps=1)
    for service in (Vague, Dull):
        random, bandit = asked_by(Knockoff(epochs=1, fewest_steps=1), service()), asked_by(adaptive, service())
        # Control: the same service, sure of every class.
        assert bool((random == bandit).all()) == (service is Vague)
    assert (random != asked_by(msgspec.structs.replace(adaptive, sure=0.0), Vague())).any()


def test_an_answer_is_sure_by_its_lead() -> None:
    answers = np.array([[0.97, 0.03, 0.0], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0]])
    assert sure_classes(answers, 0.9) == {0, 2}
    assert sure_classes(answers, 0.8) == {0, 1, 2}
    assert sure_classes(answers[:0], 0.9) == set()


def test_labels_alone_say_nothing_of_certainty() -> None:
    x = rows(50, seed=5)
    exam = Exam(x, Linear().truth(x).argmax(axis=1))
    attack = KnockoffAdaptive(actions=4, rewards=(Reward.CERTAINTY,), rows_a_round=20, epochs=2)
    trial = attack.carry_out(LabelsOnly(Linear()), Knowledge(rows(200)), exam, budget=60, seed=0)
    assert trial.queries == 60
    assert trial.told["mean_reward"] == 0
    with_soft = attack.carry_out(Linear(), Knowledge(rows(200)), exam, budget=60, seed=0)
    assert with_soft.told["mean_reward"] > 0.3


def test_a_small_pool_is_asked_whole_and_no_more() -> None:
    exam = Exam(rows(5), np.zeros(5, np.int64))
    attack = KnockoffAdaptive(epochs=1, rows_a_round=7)
    assert attack.carry_out(Linear(), Knowledge(rows(20)), exam, budget=50, seed=0).queries == 20
    assert attack.carry_out(Linear(), Knowledge(rows(0)), exam, budget=50, seed=0).queries == 0
