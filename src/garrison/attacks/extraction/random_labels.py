"""The control arm of extraction: a clone of nothing.

Trained like a knockoff, on the same surrogate rows, with classes drawn at random; the service is asked nothing. Whatever its
clone scores is not stolen, so a defended service is as good as it gets when its clones score no more than this one.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from garrison.attacks.base import Goal
from garrison.attacks.exam import Clone
from garrison.attacks.extraction.clones import train_clone
from garrison.attacks.extraction.knockoff import Knockoff, one_hot, surrogate_rows
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle


class RandomLabels(Knockoff, frozen=True):
    """Train a clone as a knockoff does, on random classes.

    Attributes:
        epochs, fewest_steps, batch, learning_rate, weight_decay, averaged, balance: see
            `garrison.attacks.extraction.clones.Recipe`.
    """

    name: ClassVar[str] = "random-labels"
    goal: ClassVar[Goal] = Goal.EXTRACTION
    asks: ClassVar[bool] = False

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone:
        rows = surrogate_rows(knowledge, rng, oracle.remaining)
        seed = int(rng.integers(2**63))
        targets = one_hot(rng.integers(0, oracle.facts.classes, len(rows)), oracle.facts.classes)
        return train_clone(rows, targets, oracle.facts, self.recipe, seed)
