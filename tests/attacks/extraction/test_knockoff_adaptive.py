"""The bandit: it finds the groups that pay, forgets nothing, and draws no row twice."""

from __future__ import annotations

import numpy as np
import pytest
from tests.attacks.services import CLASSES, Linear, rows

from garrison.attacks.exam import Exam
from garrison.attacks.extraction.clusters import clusters, projected
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.attacks.extraction.knockoff_adaptive import Bandit, Judge, KnockoffAdaptive, Reward
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, LabelsOnly, MeteredOracle, Oracle
from garrison.types import Array

ALL = tuple(Reward)


def trained_bandit(pays: tuple[float, ...], rounds: int, rate: float = 1.0) -> Bandit:
    groups = np.repeat(np.arange(len(pays)), 2000)
    bandit = Bandit(groups, 25, rate, np.random.default_rng(0))
    noise = np.random.default_rng(1)
    for row in bandit.draw(rounds):
        bandit.learn(int(groups[row]), pays[groups[row]] + 0.2 * noise.normal())
    return bandit


def test_the_policy_moves_to_the_group_that_pays_and_else_stays() -> None:
    paying = np.mean(
        [trained_bandit((0.9, 0.1, 0.1, 0.1), 500).policy()[0], trained_bandit((0.9, 0.1, 0.1, 0.1), 900).policy()[0]]
    )
    alike = trained_bandit((0.5, 0.5, 0.5, 0.5), 500).policy()
    assert paying > 0.5
    assert alike.max() < 0.4  # control


def test_a_step_is_the_papers() -> None:
    bandit = Bandit(np.array([0, 0, 1, 1]), 25, 1.0, np.random.default_rng(0))
    bandit.learn(0, 0.5)  # the first reward is its own baseline
    assert bandit.policy().tolist() == [0.5, 0.5]
    bandit.learn(0, 1.0)  # a = 1/2, r - mean r = 0.5, pi = 0.5: H = (0.125, -0.125)
    expected = np.exp([0.125, -0.125])
    assert bandit.policy() == pytest.approx(expected / expected.sum())


def test_no_row_is_drawn_twice_and_empty_groups_are_left() -> None:
    bandit = Bandit(np.array([0] * 3 + [1] * 40 + [2] * 7), 25, 1.0, np.random.default_rng(0))
    drawn = np.concatenate([bandit.draw(20), bandit.draw(20), bandit.draw(20)])
    assert sorted(drawn.tolist()) == list(range(50))
    assert bandit.left == 0
    assert len(bandit.draw(5)) == 0


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
