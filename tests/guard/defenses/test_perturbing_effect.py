"""Effect of each answer-perturbing defense on thieves of a plain Fashion-MNIST model. Figures are printed (`pytest -s`)."""

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
DIGITS, GROWN = 5000, 2400


@dataclass(frozen=True)
class Case:
    """A defense, what its thief imagines, and the most that a naive thief may get of what it gets undefended (by digits, by JBDA)."""

    name: str
    parameters: dict[str, Any]
    imagined: Mechanism
    most: tuple[float, float]


CASES = [
    Case("reverse-sigmoid", {}, "reverse-sigmoid", (0.9, 1.02)),
    Case("prediction-poisoning", {"seed": 20251121}, "poisoning", (0.8, 0.9)),
    Case("gradient-redirection", {"seed": 20251121}, "poisoning", (0.95, 1.0)),
    Case("modelguard-w", {}, "poisoning", (0.9, 0.95)),
    Case("modelguard-s", {}, "quantised", (1.02, 1.02)),
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
def undefended(world: Clothes, digits: Array) -> tuple[float, float]:
    """Clone accuracy by digits and by JBDA: the control arm."""
    by_digits = stolen(world, world.victim, Knockoff(), Knowledge(digits))
    return by_digits, stolen(world, world.victim, Jbda(), own(world))


def own(world: Clothes) -> Knowledge:
    return Knowledge(world.x[:0], labelled=world.labelled(15, 0))


def stolen(world: Clothes, victim: Any, attack: Attack, known: Knowledge, *tactics: Tactic) -> float:
    budget = GROWN if isinstance(attack, Jbda) else DIGITS
    trial = attack.carry_out(victim, known, world.exam, budget=budget, seed=0, tactics=tactics)
    return float(trial.scores["clone_accuracy"].mean())


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
def test_what_thieves_get(world: Clothes, digits: Array, undefended: tuple[float, float], case: Case) -> None:
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
    naive = stolen(world, service, Knockoff(), Knowledge(digits)), stolen(world, service, Jbda(), own(world))
    aware = stolen(world, service, Knockoff(), Knowledge(digits), RestoreBayes(mechanism=case.imagined))
    shown = [f"{what} {100 * value:.1f}" for what, value in zip(("digits", "jbda"), naive, strict=True)]
    sys.stdout.write(f"\n{case.name}: undefended {undefended}, naive {shown}, digits restored {100 * aware:.1f}")
    assert undefended[0] > 0.3
    assert undefended[1] > 0.71
    for got, control, most in zip(naive, undefended, case.most, strict=True):
        assert got <= most * control
