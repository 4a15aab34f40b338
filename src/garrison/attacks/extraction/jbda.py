"""Jacobian-based data augmentation: from a few rows of the model's own kind to many, along the clone's own gradients.

Papernot, McDaniel, Goodfellow, Jha, Celik and Swami, "Practical Black-Box Attacks against Machine Learning" (ASIA CCS 2017). Begin
with seeds, ask about them, train; then move every row by lambda along the sign of the clone's gradient of the class that the
service gave it, `x' = clip(x + lambda_r sgn(J_F[O(x)]))` with `lambda_r = lambda (-1)^floor(r / tau)`, ask about the moved rows,
train on, and again. After `doublings` rounds only `reservoir` rows a round are moved, drawn by reservoir sampling (Vitter 1985).

Targeted at random (jbda-tr): Juuti, Szyller, Marchal and Asokan, "PRADA: Protecting against DNN Model Stealing Attacks" (EuroS&P
2019), T-RND. A row moves towards a class that is drawn at random, in small steps: `x' = clip(x + lambda / k sgn(grad log p_c))`.

Not covered: the search for the clone's own hyperparameters by cross-validation that Juuti et al. add.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from garrison.attacks.base import Goal
from garrison.attacks.checks import at_least, positive
from garrison.attacks.draws import within
from garrison.attacks.exam import Loot
from garrison.attacks.extraction.clones import train_clone
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.attacks.extraction.students import Student
from garrison.attacks.extraction.transfer import TransferSet
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Labels, MeteredOracle, OracleFacts
from garrison.types import Array


class Jbda(Knockoff, frozen=True):
    """Grow a set from seeds along the clone's gradients.

    Attributes:
        seeds: rows to begin with: labelled ones where the attacker has them, else unlabelled ones of the model's own kind, else
            surrogate rows. They are asked, and count.
        step: lambda, as a share of the range of the inputs, or of their deviation where no range is stated.
        turn: tau, rounds after which the direction turns round; 0 for never.
        doublings: rounds in which every row is moved.
        reservoir: rows that are moved in every later round.
        round_epochs: passes between two rounds; the last training begins anew with the `epochs` of a knockoff.
        epochs, fewest_steps, batch, learning_rate, weight_decay, averaged, balance: see
            `garrison.attacks.extraction.clones.Recipe`.
    """

    name: ClassVar[str] = "jbda"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    seeds: int = 150
    step: float = 0.2
    turn: int = 1
    doublings: int = 4
    reservoir: int = 400
    round_epochs: int = 10
    batch: int = 256
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    balance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "seeds", "reservoir", "round_epochs")
        at_least(self, 0, "turn", "doublings")
        positive(self, "step")

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        begun, own = seed_rows(knowledge, rng, min(self.seeds, oracle.remaining))
        if not len(begun):
            return Loot(train_clone(begun, np.zeros((0, oracle.facts.classes)), oracle.facts, self.recipe, 0))
        student = Student(oracle.facts, begun, int(rng.integers(2**63)))
        held = TransferSet(oracle)
        held.ask(begun)
        rounds = 0
        while oracle.remaining:
            student.learn(*held.usable(), self.recipe_of(self.round_epochs))
            sources = self._sources(len(held), rounds, rng)[: oracle.remaining]
            named = held.labels_or(student)[sources]
            held.ask(self.moved(student, held.x[sources], named, rounds, oracle.facts, rng))
            rounds += 1
        clone = train_clone(*held.usable(), oracle.facts, self.recipe, int(rng.integers(2**63)))
        return Loot(clone, {"seeds": float(len(begun)), "seeds_of_the_own_kind": float(own), "rounds": float(rounds)})

    def moved(
        self, student: Student, x: Array, labels: Labels, number: int, facts: OracleFacts, rng: np.random.Generator
    ) -> Array:
        """The rows moved, within the range of the inputs.

        Args:
            student: whose gradients are followed.
            x: (rows, *shape).
            labels: (rows,), what the service called them.
            number: of the round, from 0.
            facts: of the service.
            rng: for what is drawn.
        """
        del rng
        way = -1.0 if self.turn and (number // self.turn) % 2 else 1.0
        return nudged(x, way * student.rise(x, labels), self.step, facts)

    def _sources(self, rows: int, number: int, rng: np.random.Generator) -> Array:
        if number < self.doublings or rows <= self.reservoir:
            return rng.permutation(rows)
        return reservoir_sample(rows, self.reservoir, rng)


class JbdaTargeted(Jbda, frozen=True):
    """Grow a set from seeds, each row towards a class drawn at random.

    Attributes:
        steps: k, into how many steps a move is divided.
        seeds, step, turn, doublings, reservoir, round_epochs, epochs, fewest_steps, batch, learning_rate, weight_decay, averaged,
            balance: see `Jbda`; `turn` is not used.
    """

    name: ClassVar[str] = "jbda-tr"

    steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "steps")

    def moved(
        self, student: Student, x: Array, labels: Labels, number: int, facts: OracleFacts, rng: np.random.Generator
    ) -> Array:
        del number
        others = rng.integers(1, max(2, facts.classes), len(x))
        target = (labels + others) % facts.classes
        for _ in range(self.steps):
            x = nudged(x, student.rise(x, target), self.step / self.steps, facts)
        return x


def seed_rows(knowledge: Knowledge, rng: np.random.Generator, most: int) -> tuple[Array, bool]:
    """At most so many rows to begin with, in random order, and whether they are of the model's own kind."""
    if knowledge.labelled is not None:
        found, own = knowledge.labelled.x, True
    elif knowledge.in_distribution is not None:
        found, own = knowledge.in_distribution, True
    else:
        found, own = knowledge.surrogate, False
    return found[rng.permutation(len(found))[:most]], own


def nudged(x: Array, direction: Array, step: float, facts: OracleFacts) -> Array:
    """`clip(x + step * range * sgn(direction))` in the service's dtype; what is missing stays missing."""
    low, high = facts.low.astype(np.float64), facts.high.astype(np.float64)
    width = high - low
    spread = np.nanstd(x.astype(np.float64), axis=0)
    unit = np.where(np.isfinite(width), width, np.where(spread > 0, spread, 1.0))
    return within(x + step * unit * np.sign(direction), facts)


def reservoir_sample(rows: int, most: int, rng: np.random.Generator) -> Array:
    """Numbers of `most` of so many rows, each set equally likely, in one pass (Vitter 1985, algorithm R)."""
    kept = np.arange(most)
    for row in range(most, rows):
        place = int(rng.integers(row + 1))
        if place < most:
            kept[place] = row
    return kept
