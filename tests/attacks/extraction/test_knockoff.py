"""Surrogate-data extraction on real small services: it steals, less from labels, and nothing where there is nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.attacks.services import CLASSES, Linear, facts, rows

from garrison.attacks.exam import Exam
from garrison.attacks.extraction.clones import Recipe, is_image, network, scaling, train_clone
from garrison.attacks.extraction.knockoff import Knockoff, one_hot, surrogate_rows, targets_of
from garrison.attacks.extraction.random_labels import RandomLabels
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, LabelsOnly, Oracle
from garrison.types import Array

RECIPE = Recipe(epochs=3, fewest_steps=1, batch=16, learning_rate=1e-2, weight_decay=0.0, averaged=0.0, balance=0.0)


def exam() -> Exam:
    x = rows(400, seed=11)
    truth = Linear().truth(x)
    return Exam(x, truth.argmax(axis=1), truth)


def accuracy(attack: Knockoff, oracle: Oracle, budget: int, seed: int = 0) -> float:
    trial = attack.carry_out(oracle, Knowledge(rows(1000)), exam(), budget=budget, seed=seed)
    return float(trial.scores["clone_accuracy"].mean())


def test_it_steals_a_model_and_the_control_does_not() -> None:
    attack = Knockoff(weight_decay=0.0)
    soft, labels = accuracy(attack, Linear(), 600), accuracy(attack, LabelsOnly(Linear()), 600)
    control = accuracy(RandomLabels(weight_decay=0.0), Linear(), 600)
    assert soft > 0.9
    assert labels > 0.8
    assert control < 0.6


def test_more_queries_steal_more() -> None:
    attack = Knockoff(weight_decay=0.0)
    assert accuracy(attack, Linear(), 600) > accuracy(attack, Linear(), 15) + 0.03


def test_the_control_asks_nothing() -> None:
    service = Linear()
    RandomLabels(epochs=1).carry_out(service, Knowledge(rows(50)), exam(), budget=20, seed=0)
    assert service.asked == []


def test_a_regressor_is_not_its_business() -> None:
    assert "real values" in Knockoff().obstacle(dataclasses.replace(facts(), regression=True, soft=False))
    assert Knockoff().obstacle(facts(soft=False)) == ""


def test_budgets_are_prefixes_of_one_stream() -> None:
    few, many = Linear(), Linear()
    for service, budget in ((few, 20), (many, 60)):
        Knockoff(epochs=1, fewest_steps=1).carry_out(service, Knowledge(rows(100)), exam(), budget=budget, seed=3)
    assert np.array_equal(np.concatenate(few.asked), np.concatenate(many.asked)[:20])
    drawn = surrogate_rows(Knowledge(rows(100)), np.random.default_rng(3), 60)
    assert len(np.unique(drawn, axis=0)) == 60


def test_refused_and_uncertain_rows_are_not_learnt_from() -> None:
    """A service that marks all rows of the first half as uncertain and answers them wrongly."""

    class Uncertain(Linear):
        def query(self, x: Array) -> Answers:
            found = super().query(x)
            doubtful = x[:, 1] < 0.5
            labels = np.where(doubtful, (found.labels + 1) % CLASSES, found.labels)
            return Answers(labels, None, found.refused, doubtful)

    attack = Knockoff(weight_decay=0.0)
    trial = attack.carry_out(LabelsOnly(Uncertain()), Knowledge(rows(1000)), exam(), budget=800, seed=0)
    assert trial.scores["clone_accuracy"].mean() > 0.6  # learnt from the wrong half, it would be far below


def test_targets_are_probabilities_again_after_rounding() -> None:
    p = np.array([[0.5, 0.3, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0], [np.nan] * 4])
    answers = Answers(np.array([0, 2, -1]), p, np.array([False, False, True]), np.zeros(3, dtype=np.bool_))
    found = targets_of(answers, CLASSES)
    assert found[0] == pytest.approx([5 / 9, 3 / 9, 1 / 9, 0])
    assert found[1].tolist() == [0, 0, 1, 0]
    assert found[2].tolist() == [0, 0, 0, 0]
    assert one_hot(np.array([1, -1]), 3).tolist() == [[0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("shape", "image"),
    [
        ((1, 28, 28), True),
        ((3, 96, 64), True),
        ((1, 12, 12), True),
        ((5, 12, 14), True),
        ((28, 24), True),
        ((24, 28, 3), True),
        ((70, 66, 1), True),
        ((1, 8, 8), False),
        ((40, 9), False),
        ((5,), False),
        ((2, 3), False),
    ],
)
def test_a_network_fits_every_shape(shape: tuple[int, ...], *, image: bool) -> None:
    assert is_image(shape) is image
    x = np.random.default_rng(0).random((20, *shape), dtype=np.float32)
    clone = train_clone(x, one_hot(np.arange(20) % 3, 3), facts(shape, 3), RECIPE, seed=0)
    p = clone(x[:7])
    assert p.shape == (7, 3)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)


def test_channels_may_stand_last_or_nowhere() -> None:
    """The same pictures in another order of axes give the same clone."""
    x = np.random.default_rng(0).random((40, 1, 16, 14), dtype=np.float32)
    goals = one_hot((x.mean(axis=(1, 2, 3)) > 0.5).astype(np.int64), 2)
    forms = {(1, 16, 14): x, (16, 14): x[:, 0], (16, 14, 1): x[:, 0, :, :, None]}
    found = [train_clone(rows, goals, facts(shape, 2), RECIPE, seed=0)(rows) for shape, rows in forms.items()]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5)


def test_lenet_has_the_published_size() -> None:
    assert sum(p.numel() for p in network((1, 28, 28), 10).parameters()) == 61_706


def test_inputs_are_scaled_by_range_or_by_moments() -> None:
    wide = np.full((4, 1, 28, 28), 255.0, np.float32)
    by_range = facts((1, 28, 28))
    by_range = type(by_range)(by_range.shape, by_range.dtype, by_range.low, 255 * by_range.high, 10, soft=True)
    assert scaling(wide, by_range)(torch.as_tensor(wide)).max().item() == pytest.approx(1.0)
    table = np.array([[0.0, 5.0], [2.0, 5.0], [np.nan, 5.0]], np.float32)
    scaled = scaling(table, facts((2,)))(torch.as_tensor(table)).numpy()
    assert scaled.tolist() == [[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]


def test_a_clone_of_nothing_answers_every_class_alike() -> None:
    clone = train_clone(rows(0), np.zeros((0, CLASSES)), facts(), RECIPE, seed=0)
    assert clone(rows(3)).tolist() == [[0.25] * 4] * 3


def test_training_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train_clone(rows(20), one_hot(np.arange(20) % CLASSES, CLASSES), facts(), RECIPE, seed=0)
    assert torch.equal(torch.rand(3), expected)
