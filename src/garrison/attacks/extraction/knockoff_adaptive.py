"""Surrogate-data extraction that learns which surrogate rows pay: a bandit over groups of rows.

Orekondy, Schiele and Fritz, "Knockoff Nets: Stealing Functionality of Black-Box Models" (CVPR 2019), section 4.1.2. An action z is
a group of surrogate rows, drawn with the chance `pi(z) = exp(H(z)) / sum exp(H)`; a row of that group is asked, and

    H(z) += a (r - mean r) (1 - pi(z)),    H(others) -= a (r - mean r) pi(others),    a = rate / times z was drawn,

with the mean over the last `window` rewards. The reward is the mean of up to three in [0, 1]: certainty (first minus second probability),
diversity (`sum_k max(0, y_k - mean y_k)` over the last `window` answers) and loss (how far the clone is from the answer).

Different from the paper: groups come from clustering, as surrogate rows carry no labels here; the clone behind the loss is trained
on between rounds of rows, not after each row; the loss is `1 - exp(-KL(answer, clone))`, so that it lies in [0, 1]; rows without a
usable answer earn nothing. The last training begins anew and is the random strategy's own, so that the two differ in their rows alone.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from garrison.attacks.base import Goal
from garrison.attacks.checks import at_least, positive
from garrison.attacks.exam import Loot
from garrison.attacks.extraction.clones import train_clone
from garrison.attacks.extraction.clusters import Groups, clusters
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.attacks.extraction.students import Student
from garrison.attacks.extraction.transfer import TransferSet
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle
from garrison.types import FloatArray

TINY = 1e-12


class Reward(enum.StrEnum):
    """What makes a row worth asking."""

    CERTAINTY = "certainty"
    """The service is sure of its answer. Says nothing where only labels are released, and is left out there."""
    DIVERSITY = "diversity"
    """The answer differs from the last ones."""
    LOSS = "loss"
    """The clone would have answered otherwise."""


class KnockoffAdaptive(Knockoff, frozen=True):
    """Ask surrogate rows from the groups that have paid, train a clone on the answers.

    Attributes:
        actions: groups that the surrogate rows are divided into; fewer where there are fewer rows.
        rewards: which of "certainty", "diversity" and "loss" count; with none every group keeps its chance, a control.
        rate: times a.
        window: answers and rewards that the means are taken over.
        rows_a_round: rows between two trainings.
        round_epochs: passes between two rounds.
        epochs, fewest_steps, batch, learning_rate, weight_decay, averaged, balance: see
            `garrison.attacks.extraction.clones.Recipe`.
    """

    name: ClassVar[str] = "knockoff-adaptive"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    actions: int = 50
    rewards: tuple[Reward, ...] = (Reward.CERTAINTY, Reward.DIVERSITY, Reward.LOSS)
    window: int = 25
    rate: float = 5.0
    rows_a_round: int = 250
    round_epochs: int = 3
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "actions", "window", "rows_a_round", "round_epochs")
        positive(self, "rate")
        if len(set(self.rewards)) != len(self.rewards):
            raise ValueError("rewards must name none twice")

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        pool, held = knowledge.surrogate, TransferSet(oracle)
        if not len(pool):
            return Loot(train_clone(pool, held.targets, oracle.facts, self.recipe, 0))
        student = Student(oracle.facts, pool[:1000], int(rng.integers(2**63)))
        seed = int(rng.integers(2**63))
        groups = clusters(pool, min(self.actions, len(pool)), rng)
        bandit = Bandit(groups, self.window, self.rate, rng)
        judge = Judge(tuple(r for r in self.rewards if r != Reward.CERTAINTY or oracle.facts.soft), self.window)
        while oracle.remaining and bandit.left:
            drawn = bandit.draw(min(self.rows_a_round, oracle.remaining))
            new = held.ask(pool[drawn])
            guessed = student.probabilities(pool[drawn])
            for row, target, guess, usable in zip(drawn, held.targets[new], guessed, held.answered[new], strict=False):
                bandit.learn(int(groups[row]), judge.reward(target, guess) if usable else 0.0)
            if oracle.remaining and Reward.LOSS in judge.rewards:
                student.learn(*held.usable(), self.recipe_of(self.round_epochs))
        clone = train_clone(*held.usable(), oracle.facts, self.recipe, seed)
        return Loot(
            clone, {"mean_reward": judge.mean_reward, "highest_chance_of_a_group": float(bandit.policy().max())}
        )


class Judge:
    """Rewards in [0, 1].

    Args:
        rewards: which count; with none every row earns 0.
        window: answers that diversity is measured against.
    """

    def __init__(self, rewards: tuple[Reward, ...], window: int) -> None:
        self.rewards = rewards
        self._last: deque[FloatArray] = deque(maxlen=window)
        self._sum, self._count = 0.0, 0

    @property
    def mean_reward(self) -> float:
        return self._sum / max(1, self._count)

    def reward(self, target: FloatArray, guess: FloatArray) -> float:
        """Of one answer, shape (classes,), where the clone guessed `guess`."""
        parts = {
            Reward.CERTAINTY: _certainty(target),
            Reward.DIVERSITY: self._diversity(target),
            Reward.LOSS: _loss(target, guess),
        }
        self._last.append(target)
        found = sum(parts[r] for r in self.rewards) / max(1, len(self.rewards))
        self._sum, self._count = self._sum + found, self._count + 1
        return found

    def _diversity(self, target: FloatArray) -> float:
        return float(np.maximum(0.0, target - np.mean(self._last, axis=0)).sum()) if self._last else 0.0


def _certainty(target: FloatArray) -> float:
    ordered = np.sort(target)
    return float(ordered[-1] - ordered[-2]) if len(ordered) > 1 else 0.0


def _loss(target: FloatArray, guess: FloatArray) -> float:
    divergence = (target * (np.log(target + TINY) - np.log(guess + TINY))).sum()
    return float(1.0 - np.exp(-max(0.0, float(divergence))))


class Bandit:
    """The gradient bandit (Sutton and Barto, section 2.8) over groups that run empty: a row is drawn once.

    Args:
        groups: (rows,), the group of each row.
        window: rewards that the baseline is the mean of.
        rate: a step is this over the number of times that the group was drawn.
        rng: of the drawing.
    """

    def __init__(self, groups: Groups, window: int, rate: float, rng: np.random.Generator) -> None:
        order = rng.permutation(len(groups))
        self._rows = [deque(order[groups[order] == z].tolist()) for z in range(int(groups.max()) + 1)]
        self._preference = np.zeros(len(self._rows))
        self._drawn = np.zeros(len(self._rows))
        self._last: deque[float] = deque(maxlen=window)
        self._rng, self._rate = rng, rate
        self.left = len(groups)

    def policy(self) -> FloatArray:
        """Chance of each group; 0 for the empty ones."""
        there = np.array([bool(rows) for rows in self._rows])
        weights = np.exp(self._preference - self._preference.max()) * (there if there.any() else 1.0)
        found: FloatArray = weights / weights.sum()
        return found

    def draw(self, most: int) -> npt.NDArray[np.int64]:
        """At most so many rows by the present policy, none twice; fewer where no more are left."""
        drawn: list[int] = []
        while len(drawn) < most and self.left:
            for z in self._rng.choice(len(self._rows), most - len(drawn), p=self.policy()):
                if self._rows[z]:
                    drawn.append(self._rows[z].popleft())
                    self.left -= 1
        return np.array(drawn, dtype=np.int64)

    def learn(self, action: int, reward: float) -> None:
        """Shift the policy by one reward."""
        baseline = float(np.mean(self._last)) if self._last else reward
        self._last.append(reward)
        self._drawn[action] += 1
        step, policy = self._rate * (reward - baseline) / self._drawn[action], self.policy()
        self._preference -= step * policy
        self._preference[action] += step
