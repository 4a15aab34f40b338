"""Surrogate-data extraction that learns which surrogate rows pay: a bandit over groups of rows.

Orekondy, Schiele and Fritz, "Knockoff Nets: Stealing Functionality of Black-Box Models" (CVPR 2019), section 4.1.2. An action z is
a group of surrogate rows; a row of that group is asked, and the preference H moves by

    H(z) += a (r - mean r) (1 - pi(z)),    H(others) -= a (r - mean r) pi(others),    a = rate / times z was drawn,

with the mean over the last `window` rewards. The reward is the mean of up to three in [0, 1]: certainty (first minus second probability),
diversity (`sum_k max(0, y_k - mean y_k)` over the last `window` answers) and loss (how far the clone is from the answer).

Different from the paper: surrogate rows carry no labels here, so that a row is in two groups, by what it looks like (clusters) and by
what the clone between two rounds takes it for and how surely; a row is drawn with a chance proportional to `exp(H(z1) + H(z2))`.
The clone behind the loss is trained on between rounds of rows, not after each row; the loss is `1 - exp(-KL(answer, clone))`, so that
it lies in [0, 1]; rows without a usable answer earn nothing.

A pile that holds nothing of the model's own kind is answered surely with a few of the classes alone, and there the groups that pay are no
better to learn from. So nothing is preferred before every class was answered surely; until then, it may be to the end, the thief is the random
one.

Invariant: as long as nothing is learnt or preferred, and with no reward, the rows are those of the random strategy with the same seed, in its order. The
last training begins anew and is the random strategy's own. So the two differ in the rows that the bandit preferred, and in no luck of a draw.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from garrison.attacks.base import Goal
from garrison.attacks.checks import at_least, positive, share
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
LOOKS, MEANING = "looks", "meaning"
"""The two divisions: clusters of rows, and what the clone takes them for."""


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
        actions: groups that the surrogate rows are divided into by their looks; fewer where there are fewer rows.
        levels: groups into which the rows that the clone takes for one class are divided, by how surely it does.
        rewards: which of "certainty", "diversity" and "loss" count; with none every group keeps its chance, a control.
        rate: times a.
        sure: how far the first class has to be ahead of the second for an answer to be sure; 0 prefers from the first reward on. Labels
            alone count as sure.
        window: answers and rewards that the means are taken over.
        rows_a_round: rows between two trainings.
        round_epochs: passes between two rounds.
        epochs, fewest_steps, batch, learning_rate, weight_decay, averaged, balance: see
            `garrison.attacks.extraction.clones.Recipe`.
    """

    name: ClassVar[str] = "knockoff-adaptive"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    actions: int = 50
    levels: int = 3
    rewards: tuple[Reward, ...] = (Reward.CERTAINTY, Reward.DIVERSITY, Reward.LOSS)
    window: int = 25
    rate: float = 5.0
    sure: float = 0.9
    rows_a_round: int = 250
    round_epochs: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "actions", "levels", "window", "rows_a_round", "round_epochs")
        positive(self, "rate")
        share(self, "sure", zero=True)
        if len(set(self.rewards)) != len(self.rewards):
            raise ValueError("rewards must name none twice")

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        pool, held = knowledge.surrogate, TransferSet(oracle)
        if not len(pool):
            return Loot(train_clone(pool, held.targets, oracle.facts, self.recipe, 0))
        bandit = Bandit(rng.permutation(len(pool)), self.window, self.rate)
        seed = int(rng.integers(2**63))
        student = Student(oracle.facts, pool[:1000], int(rng.integers(2**63)))
        actions = min(self.actions, len(pool))
        bandit.divide(LOOKS, clusters(pool, actions, rng), actions)
        judge = Judge(tuple(r for r in self.rewards if r != Reward.CERTAINTY or oracle.facts.soft), self.window)
        named: set[int] = set()
        while oracle.remaining and bandit.left:
            own_kind = not self.sure or len(named) == oracle.facts.classes
            drawn = bandit.draw(min(self.rows_a_round, oracle.remaining), prefer=own_kind)
            new = held.ask(pool[drawn])
            if not judge.rewards:
                continue
            named |= sure_classes(held.targets[new][held.answered[new]], self.sure)
            guessed = student.probabilities(pool[drawn])
            answered = zip(held.targets[new], guessed, held.answered[new], strict=False)
            rewards = [judge.reward(target, guess) if usable else 0.0 for target, guess, usable in answered]
            bandit.learn(drawn[: len(rewards)], rewards)
            if oracle.remaining:
                student.learn(*held.usable(), self.recipe_of(self.round_epochs))
                meant = meanings(student.probabilities(pool), self.levels)
                bandit.divide(MEANING, meant, self.levels * oracle.facts.classes)
        clone = train_clone(*held.usable(), oracle.facts, self.recipe, seed)
        return Loot(
            clone, {"mean_reward": judge.mean_reward, "highest_chance_of_a_group": float(bandit.policy(LOOKS).max())}
        )


def sure_classes(targets: FloatArray, lead: float) -> set[int]:
    """The classes that some of the answers (rows, classes) name with such a lead over the second."""
    sure = [target for target in targets if _certainty(target) >= lead]
    return {int(target.argmax()) for target in sure}


def meanings(p: FloatArray, levels: int) -> Groups:
    """Groups of rows by their first class and how far it is ahead of the second, shape (rows,).

    Args:
        p: (rows, classes), probabilities.
        levels: equally many rows of all classes together are in each.
    """
    ordered = np.sort(p, axis=1)
    lead = ordered[:, -1] - (ordered[:, -2] if p.shape[1] > 1 else 0.0)
    edges = np.quantile(lead, np.arange(1, levels) / levels) if len(p) else np.zeros(0)
    found: Groups = p.argmax(axis=1).astype(np.int64) * levels + np.digitize(lead, edges)
    return found


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
    """The gradient bandit (Sutton and Barto, section 2.8) over rows that are drawn once, each in a group of every division.

    Args:
        order: (rows,), the numbers of the rows as they come where nothing is preferred.
        window: rewards that the baseline is the mean of.
        rate: a step is this over the number of times that the group was drawn.
    """

    def __init__(self, order: Groups, window: int, rate: float) -> None:
        # A clock for each row, with the quantiles of an exponential distribution for random times. The first to ring at the pace exp(H) are a
        # draw without replacement by the policy, what is left of the others' time is exponential again; with all H alike the order stays.
        self._time = np.empty(len(order))
        self._time[order] = -np.log(1.0 - (np.arange(len(order)) + 0.5) / max(1, len(order)))
        self._groups: dict[str, Groups] = {}
        self._preference: dict[str, FloatArray] = {}
        self._drawn: dict[str, FloatArray] = {}
        self._there = np.ones(len(order), np.bool_)
        self._last: deque[float] = deque(maxlen=window)
        self._rate = rate

    @property
    def left(self) -> int:
        """Rows that were not drawn."""
        return int(self._there.sum())

    def divide(self, division: str, groups: Groups, count: int) -> None:
        """Say in which of `count` groups each row is, (rows,); what was learnt of a group's number stays."""
        self._groups[division] = groups
        self._preference.setdefault(division, np.zeros(count))
        self._drawn.setdefault(division, np.zeros(count))

    def policy(self, division: str) -> FloatArray:
        """Chance of each group; 0 for those of which no row is left."""
        height = self._height()
        weights = np.exp(height - height.max()) * (self._there if self.left else 1.0)
        counts = np.bincount(self._groups[division], weights, len(self._preference[division]))
        found: FloatArray = counts / counts.sum()
        return found

    def draw(self, most: int, *, prefer: bool = True) -> Groups:
        """Numbers of at most so many rows, none twice; fewer where no more are left.

        Args:
            most: see above.
            prefer: by the present policy; else all groups alike.
        """
        height = self._height() if prefer else np.zeros(len(self._time))
        pace = np.exp(height - height.max())
        rings = np.where(self._there, self._time / pace, np.inf)
        found = np.argsort(rings, kind="stable")[: min(most, self.left)]
        self._there[found] = False
        self._time -= pace * float(rings[found].max(initial=0.0))
        return found.astype(np.int64)

    def learn(self, rows: Groups, rewards: Sequence[float]) -> None:
        """Shift the policy by the rewards of rows."""
        policies = {division: self.policy(division) for division in self._groups}
        for row, reward in zip(rows, rewards, strict=True):
            baseline = float(np.mean(self._last)) if self._last else reward
            self._last.append(reward)
            for division, policy in policies.items():
                action = self._groups[division][row]
                self._drawn[division][action] += 1
                step = self._rate * (reward - baseline) / self._drawn[division][action]
                self._preference[division] -= step * policy
                self._preference[division][action] += step

    def _height(self) -> FloatArray:
        found = np.zeros(len(self._time))
        for division, groups in self._groups.items():
            found += self._preference[division][groups]
        return found
