"""The control arm of extraction: a clone of nothing.

Trained like a knockoff, on the same surrogate rows, with classes drawn at random; the service is asked nothing. Whatever its
clone scores is not stolen, so a defended service is as good as it gets when its clones score no more than this one.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from garrison.attacks.base import Attack, Clone, Goal, Knowledge, MeteredOracle
from garrison.attacks.extraction.clones import Recipe, train_clone
from garrison.attacks.extraction.knockoff import one_hot, surrogate_rows


class RandomLabels(Attack, frozen=True):
    """Train a clone on random classes.

    Attributes:
        epochs, batch, learning_rate: see `garrison.attacks.extraction.clones.Recipe`.
    """

    name: ClassVar[str] = "random-labels"
    goal: ClassVar[Goal] = Goal.EXTRACTION
    asks: ClassVar[bool] = False

    epochs: int = 20
    batch: int = 64
    learning_rate: float = 1e-3

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone:
        rows = surrogate_rows(knowledge, rng, oracle.remaining)
        seed = int(rng.integers(2**63))
        targets = one_hot(rng.integers(0, oracle.facts.classes, len(rows)), oracle.facts.classes)
        return train_clone(rows, targets, oracle.facts, Recipe(self.epochs, self.batch, self.learning_rate), seed)
