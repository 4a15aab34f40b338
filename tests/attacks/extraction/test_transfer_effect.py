"""Effect of the transfer-set attacks on an undefended Fashion-MNIST model, beside their controls. Figures are printed (`pytest -s`)."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from tests.attacks.victims import Clothes, clothes

from garrison import datasets
from garrison.attacks import measures
from garrison.attacks.base import Attack
from garrison.attacks.extraction.activethief import ActiveThief, Strategy
from garrison.attacks.extraction.copycat import Copycat
from garrison.attacks.extraction.jbda import Jbda, JbdaTargeted
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.attacks.extraction.knockoff_adaptive import KnockoffAdaptive
from garrison.attacks.extraction.random_labels import RandomLabels
from garrison.attacks.extraction.seeds_alone import SeedsAlone
from garrison.attacks.knowledge import Knowledge
from garrison.types import Array, FloatArray

pytestmark = pytest.mark.slow
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def world() -> Clothes:
    torch.set_num_threads(1)
    found = clothes()
    served = float((found.victim.query(found.exam.x).labels == found.exam.y).mean())
    show(f"victim {served:.4f}")
    assert served > 0.89
    return found


@pytest.fixture(scope="module")
def patches() -> Array:
    return datasets.load("photo-patches", "train").x


def show(line: str) -> None:
    sys.stdout.write(f"\n{line}")
    sys.stdout.flush()


def accuracies(
    world: Clothes, attack: Attack, knowledge: Iterable[Knowledge], budget: int, metric: str = "clone_accuracy"
) -> FloatArray:
    """One a seed, which are as many as there are pieces of knowledge."""
    found = []
    for seed, known in enumerate(knowledge):
        trial = attack.carry_out(world.victim, known, world.exam, budget=budget, seed=seed)
        assert trial.queries == (budget if attack.asks else 0)
        found.append(float(trial.scores[metric].mean()))
    show(f"{attack.name:18} {budget:6,} {metric} {np.mean(found):.4f} {np.round(found, 4).tolist()}")
    return np.array(found)


def test_jbda_gets_more_than_its_seeds(world: Clothes) -> None:
    own = [Knowledge(world.x[:0], labelled=world.labelled(15, seed)) for seed in SEEDS]
    alone = accuracies(world, SeedsAlone(), own, 150)
    answered = accuracies(world, Jbda(), own, 150)
    grown = accuracies(world, Jbda(), own, 2400)
    targeted = accuracies(world, JbdaTargeted(), own, 2400)
    for found in (grown, targeted):
        assert found.mean() >= 0.71
        assert found.mean() >= max(alone.mean(), answered.mean()) + 0.02


def test_an_adaptive_thief_gets_no_less_than_a_random_one(world: Clothes, patches: Array) -> None:
    """In a pile where one row in five is of the model's own kind (the paper's closed world), and in one where none is."""
    digits = datasets.load("mnist", "train").x[:20_000]
    mixed, foreign = Knowledge(np.concatenate([digits, world.x[:5000]])), Knowledge(patches)
    adaptive = KnockoffAdaptive()
    alike = Knockoff(batch=adaptive.batch, learning_rate=adaptive.learning_rate, weight_decay=adaptive.weight_decay)

    def difference(pool: Knowledge) -> measures.Estimate:
        random = accuracies(world, alike, [pool] * 3, 2000)
        found = measures.over_seeds(accuracies(world, adaptive, [pool] * 3, 2000) - random)
        show(f"adaptive - random: {found}")
        return found

    closed = difference(mixed)
    assert closed.low is not None
    assert closed.low >= -0.01
    assert difference(foreign).value > -0.04  # no gain there: the interval is wide and holds 0


def test_labels_of_photographs_steal_a_model_of_clothes(world: Clothes, patches: Array) -> None:
    stolen = accuracies(world, Copycat(), [Knowledge(patches)] * 3, 2000)
    control = accuracies(world, RandomLabels(), [Knowledge(patches)], 2000)
    assert stolen.mean() > 0.3
    assert control.mean() < 0.2


def test_active_learning_gets_more_than_random_rows(world: Clothes, patches: Array) -> None:
    known = [Knowledge(patches)]
    random = accuracies(world, ActiveThief(strategy=Strategy.RANDOM), known, 2000).mean()
    found = {}
    for strategy in (Strategy.ENTROPY, Strategy.MARGIN, Strategy.K_CENTER, Strategy.DFAL_K_CENTER):
        show(str(strategy))
        found[strategy] = accuracies(world, ActiveThief(strategy=strategy), known, 2000).mean()
    assert max(found.values()) > random


@pytest.mark.parametrize("labels", [True, False])
def test_the_toolbox_gets_as_much(world: Clothes, *, labels: bool) -> None:
    """Copycat and Knockoff of the adversarial-robustness-toolbox on the same rows, network and budget."""
    pytest.importorskip("art", reason="needs the adversarial-robustness-toolbox, of the dev extra")
    from tests.attacks.toolbox import stolen

    ours = Copycat() if labels else Knockoff(batch=64, learning_rate=2e-3, weight_decay=0.0)
    known = [Knowledge(world.x)] * 3
    mine = accuracies(world, ours, known, 2500, "fidelity").mean()
    assert world.exam.reference is not None
    reference, theirs = world.exam.reference.argmax(axis=1), []
    for seed in SEEDS:
        clone, asked = stolen(world.victim, world.x, 2500, seed, labels=labels)
        assert asked == 2500
        theirs.append(float((clone(world.exam.x).argmax(axis=1) == reference).mean()))
    show(f"toolbox, labels {labels}: fidelity {np.mean(theirs):.4f} {np.round(theirs, 4).tolist()}")
    assert abs(mine - np.mean(theirs)) <= 0.03
