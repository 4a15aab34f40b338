"""The control arm of attacks that begin with a few rows of the model's own kind: a clone of those rows alone.

Trained on the true classes of the rows that the thief labelled by hand; the service is asked nothing. What jbda gets beyond this
clone is stolen, the rest the thief had before. The harder control, the same rows as the service answers them, is jbda with a budget
of `seeds`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from garrison.attacks.base import Goal
from garrison.attacks.checks import at_least
from garrison.attacks.exam import Loot
from garrison.attacks.extraction.clones import train_clone
from garrison.attacks.extraction.knockoff import Knockoff, one_hot
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle


class SeedsAlone(Knockoff, frozen=True):
    """Train a clone on the rows that the thief labelled by hand; with none of them it answers every class alike.

    Attributes:
        seeds: most rows that are learnt from.
        epochs, fewest_steps, batch, learning_rate, weight_decay, averaged, balance: see
            `garrison.attacks.extraction.clones.Recipe`.
    """

    name: ClassVar[str] = "seeds-alone"
    goal: ClassVar[Goal] = Goal.EXTRACTION
    asks: ClassVar[bool] = False

    seeds: int = 150
    batch: int = 256
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    balance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "seeds")

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        own, classes = knowledge.labelled, oracle.facts.classes
        order = rng.permutation(0 if own is None else len(own.x))[: self.seeds]
        seed = int(rng.integers(2**63))
        if own is None:
            return Loot(train_clone(knowledge.surrogate[:0], np.zeros((0, classes)), oracle.facts, self.recipe, seed))
        clone = train_clone(own.x[order], one_hot(own.y[order], classes), oracle.facts, self.recipe, seed)
        return Loot(clone, {"seeds": float(len(order))})
