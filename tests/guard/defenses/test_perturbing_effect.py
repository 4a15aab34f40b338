"""Effect of each answer-perturbing defense on thieves of a plain Fashion-MNIST model. Figures are printed (`pytest -s`).

What a defense claims to take from a thief is held against the thief's own luck: three clones each, and every clone of the defended model must be worse than every
one of the undefended. If both were alike that would happen once in twenty times. A fixed share cannot be justified: a thief's seed alone moves a clone of digits by
ten points and more.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.attacks.victims import Clothes, Victim, clothes

from garrison import datasets
from garrison.attacks.base import Attack, Tactic
from garrison.attacks.extraction.jbda import Jbda
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, OracleFacts
from garrison.attacks.tactics.mechanisms import Mechanism
from garrison.attacks.tactics.restore_bayes import RestoreBayes
from garrison.guard.base import Rows
from garrison.guard.defenses.projection import matrix
from garrison.guard.perturbing import Perturbing
from garrison.guard.pipeline import load_defense
from garrison.hardening.codebook import calibrated
from garrison.types import Array, DefenseSpec, FloatArray

pytestmark = pytest.mark.slow
DIGITS, GROWN, SEEDS = 2_000, 1_000, (0, 1, 2)
THIEF = Knockoff(batch=256, learning_rate=1e-2, weight_decay=0.1)  # as in the guards' tables


@dataclass(frozen=True)
class Case:
    """A defense, what its thief imagines, and the thieves of soft answers whom it claims to leave less."""

    name: str
    parameters: dict[str, Any]
    imagined: Mechanism
    stops: frozenset[str] = frozenset()


CASES = [
    Case("reverse-sigmoid", {}, "reverse-sigmoid"),
    Case("prediction-poisoning", {"seed": 20251121}, "poisoning", frozenset({"digits", "jbda"})),
    Case("gradient-redirection", {"seed": 20251121}, "poisoning", frozenset({"jbda"})),
    Case("modelguard-w", {}, "poisoning", frozenset({"digits", "jbda"})),
    Case("modelguard-s", {}, "quantised"),
]


@dataclass(frozen=True)
class Defended:
    """The victim, its answers bent by the guard's own lines."""

    victim: Victim
    defense: Perturbing

    @property
    def facts(self) -> OracleFacts:
        return self.victim.facts

    def query(self, x: Array) -> Answers:
        found = self.victim.query(x)
        seen = x.reshape(len(x), -1).astype(np.float32) @ matrix(784, 32, 0)
        assert found.probabilities is not None
        answer: FloatArray = self.defense.rewrite(np, Rows(found.probabilities, {"projection": seen}), {})
        return replace(found, probabilities=answer, labels=answer.argmax(axis=1))


@pytest.fixture(scope="module")
def world() -> Clothes:
    torch.set_num_threads(1)
    return clothes()


@pytest.fixture(scope="module")
def digits() -> Array:
    return datasets.load("mnist", "train").x


@pytest.fixture(scope="module")
def undefended(world: Clothes, digits: Array) -> dict[str, list[float]]:
    """Accuracy of the clones by thief: the control arm."""
    found = naive(world, world.victim, digits)
    sys.stdout.write(f"\nundefended: {shown(found)}")
    return found


def naive(world: Clothes, victim: Any, digits: Array) -> dict[str, list[float]]:
    return {
        "digits": stolen(world, victim, THIEF, Knowledge(digits)),
        "jbda": stolen(world, victim, Jbda(), own(world)),
    }


def shown(found: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {[round(100 * accuracy, 1) for accuracy in values]}" for name, values in found.items())


def own(world: Clothes) -> Knowledge:
    return Knowledge(world.x[:0], labelled=world.labelled(15, 0))


def stolen(
    world: Clothes, victim: Any, attack: Attack, known: Knowledge, *tactics: Tactic, seeds: tuple[int, ...] = SEEDS
) -> list[float]:
    budget = GROWN if isinstance(attack, Jbda) else DIGITS
    trials = (attack.carry_out(victim, known, world.exam, budget=budget, seed=s, tactics=tactics) for s in seeds)
    return [float(trial.scores["clone_accuracy"].mean()) for trial in trials]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_what_thieves_get(world: Clothes, digits: Array, undefended: dict[str, list[float]], case: Case) -> None:
    known = case.parameters
    if case.name == "modelguard-s":
        answers = world.victim.query(world.x).probabilities
        assert answers is not None
        known = calibrated({}, answers)
    defense = load_defense(DefenseSpec(name=case.name, parameters=known))
    assert isinstance(defense, Perturbing)
    service = Defended(world.victim, defense)
    # Whoever reads the first class alone sees the undefended model, on every row.
    for x in (world.exam.x, digits[:DIGITS]):
        np.testing.assert_array_equal(service.query(x).labels, world.victim.query(x).labels)
    found = naive(world, service, digits)
    aware = stolen(world, service, THIEF, Knowledge(digits), RestoreBayes(mechanism=case.imagined), seeds=SEEDS[:1])
    sys.stdout.write(f"\n{case.name}: {shown(found | {'digits restored': aware})}")
    for thief in case.stops:
        assert max(found[thief]) < min(undefended[thief]), thief
