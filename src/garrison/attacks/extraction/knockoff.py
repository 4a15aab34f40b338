"""Surrogate-data extraction: ask about inputs of another kind, train a clone on the answers.

Orekondy, Schiele and Fritz, "Knockoff Nets: Stealing Functionality of Black-Box Models" (CVPR 2019), random strategy. The
thief draws rows of a surrogate set at random, asks each once and descends the cross-entropy between the clone and the answers:
against the probabilities where the service gives them, against the first class where it does not.

Training follows the paper but for one thing: rows are weighted so that all answered classes count alike, because digits shown to a
model of clothes are called a sandal most of the time, and a thief wants the other classes too.

Not covered: the adaptive strategy of the paper (see knockoff-adaptive), data augmentation, repeated questions, and a thief who looks for misinformed
answers. The rows of a smaller budget are the first rows of a larger one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from garrison.attacks.base import Attack, Goal
from garrison.attacks.checks import at_least, positive, share
from garrison.attacks.exam import Clone, Loot
from garrison.attacks.extraction.clones import Recipe, train_clone
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, MeteredOracle, OracleFacts
from garrison.types import Array, FloatArray

ROUND_STEPS = 50
"""Least steps of a training between two rounds."""


class Knockoff(Attack, frozen=True):
    """Ask random surrogate rows, train a clone on the answers.

    Attributes:
        epochs, fewest_steps, batch, learning_rate, weight_decay, averaged, balance: see
            `garrison.attacks.extraction.clones.Recipe`.
    """

    name: ClassVar[str] = "knockoff"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    epochs: int = 20
    fewest_steps: int = 150
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    averaged: float = 0.4
    balance: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "fewest_steps", "batch")
        positive(self, "learning_rate")
        positive(self, "weight_decay", zero=True)
        share(self, "balance", "averaged", zero=True)

    @property
    def recipe(self) -> Recipe:
        """The parameters as the training takes them."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.__dataclass_fields__})

    def recipe_of(self, epochs: int) -> Recipe:
        """The same with so many passes, for trainings between two rounds of questions."""
        return replace(self.recipe, epochs=epochs, fewest_steps=min(self.fewest_steps, ROUND_STEPS))

    def obstacle(self, facts: OracleFacts) -> str:
        return "it learns classes, and the service answers real values" if facts.regression else ""

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone | Loot:
        asked = surrogate_rows(knowledge, rng, oracle.remaining)
        seed = int(rng.integers(2**63))
        answers = oracle.query(asked)
        usable = answers.usable
        targets = targets_of(answers, oracle.facts.classes)
        return train_clone(asked[usable], targets[usable], oracle.facts, self.recipe, seed)


def surrogate_rows(knowledge: Knowledge, rng: np.random.Generator, budget: int) -> Array:
    """The first `budget` surrogate rows in a random order that does not depend on the budget; fewer where there are fewer."""
    return knowledge.surrogate[rng.permutation(len(knowledge.surrogate))[:budget]]


def targets_of(answers: Answers, classes: int) -> FloatArray:
    """What the clone is trained towards, shape (rows, classes): the answered probabilities, else ones at the first class.

    Rounded or cut probabilities are brought to sum to one again. Rows without an answer are zero.
    """
    if answers.probabilities is None:
        return one_hot(answers.labels, classes)
    p = np.nan_to_num(answers.probabilities.astype(np.float64)).clip(min=0.0)
    total = p.sum(axis=1, keepdims=True)
    # An answer that was rounded down to nothing still names its first class.
    return np.where(total > 0, p / np.where(total > 0, total, 1.0), one_hot(answers.labels, classes))


def one_hot(labels: np.ndarray[tuple[int], np.dtype[np.int64]], classes: int) -> FloatArray:
    """Ones at the labels, shape (rows, classes); rows with a label below 0 are zero."""
    found = np.zeros((len(labels), classes))
    known = np.flatnonzero(labels >= 0)
    found[known, labels[known]] = 1.0
    return found
