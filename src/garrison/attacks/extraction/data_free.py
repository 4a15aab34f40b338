"""Extraction without any data: a generator makes the questions, and learns from the answers which ones pay.

A generator turns noise into rows within the range of the inputs; the rows are asked; the clone learns from all that was answered
so far; the generator is then moved to where the clone still has something to learn. Two ways to move it:

    estimated  towards rows on which service and clone differ, `sum_k |l_k - l'_k|` with l the logarithms of the probabilities minus
               their mean. The service's gradient is estimated by forward differences along random directions, which cost queries:
               Truong, Maini, Walls and Papernot, "Data-Free Model Extraction" (CVPR 2021); Kariyappa, Prakash and Qureshi, "MAZE"
               (CVPR 2021).
    clone      towards rows that the clone spreads over all classes and is unsure about, by the clone's own gradients, which cost
               nothing and need no probabilities: after Sanyal, Addepalli and Babu, "Towards Data-Free Model Stealing in a Hard
               Label Setting" (CVPR 2022), without their discriminator.
    none       rows drawn evenly from the range of the inputs; a control.

Needs a stated, finite range of inputs, and far more queries than a thief with data: the papers ask 2 to 30 million for small colour
images. Here it is built for small inputs, and on the one that was measured evenly drawn rows alone get more than a generator's (see
the page). Different from the papers: the clone learns from all rows asked, not only from the last.
"""

from __future__ import annotations

import enum
import math
from typing import ClassVar

import numpy as np

from garrison.attacks.base import Goal
from garrison.attacks.checks import at_least, positive, share
from garrison.attacks.draws import has_range, uniform_rows, within
from garrison.attacks.exam import Loot
from garrison.attacks.extraction.clones import train_clone
from garrison.attacks.extraction.generators import Generator
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.attacks.extraction.students import Student
from garrison.attacks.extraction.transfer import TransferSet
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts
from garrison.types import Array, FloatArray


class Slope(enum.StrEnum):
    """Where the generator's gradient comes from; see the module's docstring."""

    ESTIMATED = "estimated"
    CLONE = "clone"
    NONE = "none"


class DataFree(Knockoff, frozen=True):
    """Ask rows that a generator made.

    Attributes:
        slope: "estimated", "clone" or "none"; "estimated" is "clone" where only labels are released or features are whole numbers.
        rows_a_round: rows that a round asks, those for the estimate left out.
        directions: of each row's estimate; each costs a query a row.
        distance: between a row and its neighbour in an estimate, as a share of the range of the inputs.
        share: of a round's rows, those that the generator makes; the others are drawn evenly.
        first_rounds: rounds that ask evenly drawn rows before the generator does.
        generator_steps: steps that the generator makes in a round by the clone's own gradient.
        generator_rate: its learning rate.
        round_epochs: passes of the clone between two rounds.
        epochs, fewest_steps, batch, learning_rate, weight_decay, averaged, balance: see
            `garrison.attacks.extraction.clones.Recipe`.
    """

    name: ClassVar[str] = "data-free"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    slope: Slope = Slope.CLONE
    rows_a_round: int = 250
    directions: int = 1
    distance: float = 0.001
    share: float = 0.5
    first_rounds: int = 1
    generator_steps: int = 20
    generator_rate: float = 1e-3
    round_epochs: int = 2
    batch: int = 256
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rows_a_round", "directions", "generator_steps", "round_epochs")
        at_least(self, 0, "first_rounds")
        positive(self, "generator_rate")
        share(self, "share")
        share(self, "distance", one=False)

    def obstacle(self, facts: OracleFacts) -> str:
        if not has_range(facts):
            return "without data it needs to know the smallest and largest value of each input"
        return super().obstacle(facts)

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        del knowledge  # it has none
        facts, held = oracle.facts, TransferSet(oracle)
        # A difference over a small step needs probabilities, and rows that can be a small step apart.
        slope = self.slope if (facts.soft and facts.dtype.kind == "f") or self.slope != Slope.ESTIMATED else Slope.CLONE
        generator = Generator(facts, self.generator_rate, int(rng.integers(2**63)))
        student = Student(facts, uniform_rows(rng, 1000, facts), int(rng.integers(2**63)))
        rounds = spent = 0
        while oracle.remaining:
            begun = rounds >= self.first_rounds and slope != Slope.NONE
            rows = min(self.rows_a_round, oracle.remaining)
            if begun and slope == Slope.CLONE:
                generator.follow_clone(student, rows, self.generator_steps)
            made = math.ceil(self.share * rows) if begun else 0
            x = np.concatenate([generator.rows(made), uniform_rows(rng, rows - made, facts)])
            new = held.ask(x)
            if made and slope == Slope.ESTIMATED and oracle.remaining >= made * self.directions:
                spent += made * self.directions
                generator.climb(self._estimate(oracle, student, x[:made], held.targets[new][:made], rng))
            if oracle.remaining:
                student.learn(*held.usable(), self.recipe_of(self.round_epochs))
            rounds += 1
        clone = train_clone(*held.usable(), facts, self.recipe, int(rng.integers(2**63)))
        return Loot(clone, {"rounds": float(rounds), "queries_for_estimates": float(spent)})

    def _estimate(
        self, oracle: MeteredOracle, student: Student, x: Array, targets: FloatArray, rng: np.random.Generator
    ) -> FloatArray:
        """Gradient of the disagreement by x, shape (rows, *shape), by forward differences; 0 where a row was not answered."""
        facts = oracle.facts
        wide = facts.high.astype(np.float64) - facts.low.astype(np.float64)
        here = disagreement(targets, student.probabilities(x))
        found = np.zeros(x.shape)
        for _ in range(self.directions):
            way = rng.normal(size=x.shape)
            way /= np.sqrt((way.reshape(len(x), -1) ** 2).sum(axis=1)).reshape(-1, *[1] * (x.ndim - 1))
            near = within(x + self.distance * wide * way, facts)
            side = TransferSet(oracle)
            side.ask(near)
            if len(side) < len(near):
                break  # what was refused and asked again has used the budget up
            change = disagreement(side.targets, student.probabilities(near)) - here
            known = side.answered & (targets.sum(axis=1) > 0)
            slope = np.where(known, change / self.distance, 0.0) * math.prod(x.shape[1:])
            found += slope.reshape(-1, *[1] * (x.ndim - 1)) * way / self.directions
        return found


def disagreement(p: FloatArray, q: FloatArray) -> FloatArray:
    """`sum_k |l_k - l'_k|`, shape (rows,), with l the logarithms of the probabilities minus their mean."""

    def scores(values: FloatArray) -> FloatArray:
        logs = np.log(np.maximum(values.astype(np.float64), 1e-7))
        found: FloatArray = logs - logs.mean(axis=1, keepdims=True)
        return found

    found: FloatArray = np.abs(scores(p) - scores(q)).sum(axis=1)
    return found
