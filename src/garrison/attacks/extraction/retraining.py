"""Retraining with labels alone: questions, a clone, better questions, a better clone.

Tramer et al., "Stealing Machine Learning Models via Prediction APIs" (USENIX Security 2016), section 6. Uniform retraining asks points
drawn evenly; adaptive retraining asks some of them and then, round by round, points where the clone of the answers so far is
undecided, since what lies far from the boundary is known already.

For a linear model of two classes every answer is a round of its own: the clone is the middle of all planes that explain the answers
(`garrison.attacks.extraction.bayes_point`), and the next question is the point on it that takes away the most doubt. That needs about
ten questions a feature.

Invariant: labels alone are used, whatever the service says beside them. Not covered: answers that are wrong on purpose, which lead
the adaptive questions astray.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from garrison.attacks.base import Attack, Goal
from garrison.attacks.checks import at_least, share
from garrison.attacks.exam import Loot
from garrison.attacks.extraction import learners
from garrison.attacks.extraction.ground import NO_ANSWER, Ground, Notebook
from garrison.attacks.extraction.learners import Family, Learner
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Labels, MeteredOracle, OracleFacts
from garrison.types import FloatArray

_PAIRS = 4
"""Pairs that are looked at for each question."""
_HALVINGS = 30
_SETTLING = 6
_OWN_STARTS = 16


class LabelOnly(Attack, frozen=True):
    """Base of the attacks that use the first class alone and train a small clone on it.

    Attributes:
        family: of the clone: "linear", "rbf" (a support vector machine with a Gaussian kernel), "net" (one hidden layer), or "auto",
            which takes the one that foretells the first answers best.
        hidden: units of the net's hidden layer.
        draws: where the first questions come from: "uniform" from the range of each feature, "surrogate" from the thief's own rows,
            "both" from the two in turn.
    """

    goal: ClassVar[Goal] = Goal.EXTRACTION

    family: Literal["auto", "linear", "rbf", "net"] = "auto"
    hidden: int = 20
    draws: Literal["uniform", "surrogate", "both"] = "both"

    def __post_init__(self) -> None:
        at_least(self, 1, "hidden")

    def obstacle(self, facts: OracleFacts) -> str:
        return "it needs classes, and the service answers real values" if facts.regression else ""

    def first_points(self, ground: Ground, knowledge: Knowledge, rng: np.random.Generator, count: int) -> FloatArray:
        """Questions that no answer has shaped yet, shape (count, features)."""
        found = ground.uniform(rng, count)
        own = ground.points(knowledge.surrogate)
        if self.draws != "uniform" and len(own):
            from_own = np.ones(count, dtype=np.bool_) if self.draws == "surrogate" else np.arange(count) % 2 == 1
            order = np.concatenate([rng.permutation(len(own)) for _ in range(1 + count // len(own))])[:count]
            found[from_own] = np.clip(own[order], -1.0, 1.0)[from_own]
        return found

    def chosen(self, points: FloatArray, labels: Labels, classes: int) -> Family:
        """The clone's family."""
        if self.family != "auto":
            return self.family
        return learners.family_of(points, labels, classes, self.hidden) if len(points) else "linear"

    def settings(self, notebook: Notebook, family: Family) -> dict[str, float]:
        """What the family is told beside the answers, by the answers so far."""
        points, labels = notebook.answered()
        classes = notebook.ground.facts.classes
        return learners.settings_for(family, points, labels, classes, self.hidden) if len(points) else {}

    def trained(self, notebook: Notebook, family: Family, settings: Mapping[str, float] | None = None) -> Learner:
        """A clone of all answers so far."""
        points, labels = notebook.answered()
        told = self.settings(notebook, family) if settings is None else settings
        classes = notebook.ground.facts.classes
        return learners.train(family, points, labels, classes, hidden=self.hidden, settings=told)

    def loot(self, notebook: Notebook, learner: Learner, family: Family) -> Loot:
        classes = notebook.ground.facts.classes
        told = {
            "questions a feature": notebook.oracle.rows / max(1, notebook.ground.features),
            **{f"clone is {name}": float(family == name) for name in learners.FAMILIES},
        }
        return Loot(learners.clone_of(notebook.ground, learner, classes), told)


class UniformRetraining(LabelOnly, frozen=True):
    """Ask points drawn evenly, train a clone on the classes.

    Attributes:
        family, hidden, draws: see `LabelOnly`.
    """

    name: ClassVar[str] = "uniform-retraining"

    draws: Literal["uniform", "surrogate", "both"] = "uniform"

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        ground = Ground.of(oracle.facts, knowledge)
        notebook = Notebook(oracle, ground)
        notebook.ask(self.first_points(ground, knowledge, rng, oracle.remaining))
        family = self.chosen(*notebook.answered(), oracle.facts.classes)
        return self.loot(notebook, self.trained(notebook, family), family)


class AdaptiveRetraining(LabelOnly, frozen=True):
    """Ask where the clone of the answers so far is undecided.

    Attributes:
        rounds: of questions near the boundary; a linear model of two classes is asked one by one.
        first: share of the questions that are asked before the first clone; a linear model of two classes needs none.
        family, hidden, draws: see `LabelOnly`.
    """

    name: ClassVar[str] = "adaptive-retraining"

    rounds: int = 10
    first: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rounds")
        share(self, "first", one=False)

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        facts = oracle.facts
        ground = Ground.of(facts, knowledge)
        notebook = Notebook(oracle, ground)
        family: Family = "linear"
        if self.family != "linear" or facts.classes > 2:
            notebook.ask_some(self.first_points(ground, knowledge, rng, max(1, round(self.first * oracle.remaining))))
            family = self.chosen(*notebook.answered(), facts.classes)
        if family == "linear" and facts.classes == 2:
            learner: Learner = self._one_by_one(notebook, knowledge, rng)
        else:
            learner = self._by_rounds(notebook, knowledge, rng, family)
        return self.loot(notebook, learner, family)

    def _one_by_one(self, notebook: Notebook, knowledge: Knowledge, rng: np.random.Generator) -> Learner:
        ground = notebook.ground
        posterior = learners.posterior_of(*notebook.answered())
        every = max(1, ground.features // 4)
        while notebook.remaining:
            side = posterior.one_side
            if side and notebook.remaining % 2:  # until both classes were answered
                question = posterior.far_corner(rng, side)
            else:
                question = posterior.question(rng, self.first_points(ground, knowledge, rng, _OWN_STARTS))
            points, labels = notebook.ask(question[np.newaxis])
            if labels[0] != NO_ANSWER:
                posterior.learn(points[0], 1.0 if labels[0] == 1 else -1.0)
            if notebook.remaining % every == 0:
                posterior.settle(_SETTLING)
        posterior.settle(_SETTLING * 5)
        return learners.Plane(posterior)

    def _by_rounds(self, notebook: Notebook, knowledge: Knowledge, rng: np.random.Generator, family: Family) -> Learner:
        settings = self.settings(notebook, family)
        learner = self.trained(notebook, family, settings)
        for left in range(self.rounds, 0, -1):
            count = notebook.remaining // left
            if count:
                starts = self.first_points(notebook.ground, knowledge, rng, 2 * _PAIRS * count)
                notebook.ask(undecided(learner, starts, rng, count))
                learner = self.trained(notebook, family, settings if left > 1 else None)
        return learner


def undecided(learner: Learner, starts: FloatArray, rng: np.random.Generator, count: int) -> FloatArray:
    """Points between two classes of a clone: pairs of starts that it tells apart, halved to where it changes its mind.

    Where there are too few such pairs, starts come in their place.
    """
    a, b = np.split(starts[: len(starts) // 2 * 2], 2)
    of_a, of_b = (learner.scores(part).argmax(axis=1) for part in (a, b))
    apart = np.flatnonzero(of_a != of_b)
    rarity = np.bincount(np.concatenate([of_a, of_b]), minlength=1)
    # Classes that the clone seldom names are asked about first.
    order = apart[np.argsort(np.minimum(rarity[of_a[apart]], rarity[of_b[apart]]), kind="stable")]
    few, rest = order[: count // 4], rng.permutation(order[count // 4 :])
    kept = np.concatenate([few, rest])[:count].astype(np.int64)
    near, far, own = a[kept], b[kept], of_a[kept]
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        same = (learner.scores(middle).argmax(axis=1) == own)[:, np.newaxis] if len(middle) else np.empty((0, 1), bool)
        near, far = np.where(same, middle, near), np.where(same, far, middle)
    found: FloatArray = np.concatenate([(near + far) / 2, starts])[:count]
    return found
