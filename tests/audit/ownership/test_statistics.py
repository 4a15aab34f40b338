"""The p-values: against exact enumeration, and even over random keys for any suspect."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from garrison.audit.ownership.statistics import agreement, binomial_p, holm, labels_p

CLASSES = 10


def test_the_tail_of_a_binomial() -> None:
    exact = sum(math.comb(7, k) * 0.3**k * 0.7 ** (7 - k) for k in (5, 6, 7))
    assert binomial_p(7, 5, 0.3) == pytest.approx(exact)
    assert binomial_p(7, 0, 0.3) == 1.0
    assert binomial_p(100, 100, 1 / 9) == pytest.approx(9.0**-100)
    assert binomial_p(5, 5, 1.0) == 1.0


def test_the_label_test_against_every_way_to_mark() -> None:
    """Six inputs, the suspect differs on three, two are marked: all placings and moves, enumerated."""
    asked, marked, classes = 6, 2, 4
    names = np.array([0, 0, 0, 1, 2, 3])  # served is 0 everywhere
    hits = []
    for places in product(range(asked), repeat=marked):
        if places[0] < places[1]:
            hits += [
                sum(int(names[p] == m) for p, m in zip(places, moves, strict=True))
                for moves in product(range(1, classes), repeat=marked)
            ]
    for named in (0, 1, 2):
        share = np.mean([h >= named for h in hits])
        assert labels_p(asked, marked, 3, named, classes) == pytest.approx(share)


def test_with_every_input_marked_the_label_test_is_a_binomial() -> None:
    assert labels_p(30, 30, 12, 5, CLASSES) == pytest.approx(binomial_p(12, 5, 1 / 9))


@pytest.mark.parametrize("accuracy", [0.2, 0.9])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_no_independent_suspect_is_claimed_too_often(accuracy: float, soft: bool) -> None:
    """A good and a bad suspect, both with a strong taste for some classes, under 400 keys."""
    rng = np.random.default_rng(0)
    served = rng.choice(CLASSES, 400, p=np.arange(1, 11) / 55)
    values = rng.random((400, CLASSES)) * np.array([5, 1, 1, 1, 1, 3, 1, 1, 1, 1.0])
    values[np.arange(400), served] += np.where(rng.random(400) < accuracy, 10.0, 0.0)
    found = []
    for _ in range(400):
        numbers = np.where(rng.random(400) < 0.1, rng.integers(1, CLASSES, 400), 0)
        found.append(agreement(served, numbers, values.argmax(axis=1), values if soft else None, CLASSES).p)
    p = np.array(found)
    for level in (0.2, 0.05):
        assert (p < level).mean() < level + 3 * math.sqrt(level / len(p))


def test_a_suspect_that_learnt_the_marks_is_told() -> None:
    rng = np.random.default_rng(0)
    served = rng.integers(0, CLASSES, 2400)
    numbers = np.where(rng.random(2400) < 0.01, rng.integers(1, CLASSES, 2400), 0)
    values = 0.1 * rng.random((2400, CLASSES))
    values[np.arange(2400), served] += 5
    half = np.flatnonzero(numbers)[::2]
    values[half, (served + numbers)[half] % CLASSES] += 2  # remembered, and not yet named
    one = agreement(served, numbers, values.argmax(axis=1), values, CLASSES)
    assert one.named == 0
    assert one.p_labels == 1.0
    assert one.surprise is not None
    assert one.surprise > 2
    assert one.p < 1e-5
    values[half, (served + numbers)[half] % CLASSES] += 5
    named = agreement(served, numbers, values.argmax(axis=1), None, CLASSES)
    assert named.surprise is None
    assert named.named == len(half)
    assert named.p < 1e-10
    assert named.fidelity == 1.0


def test_two_classes_will_do() -> None:
    served, numbers = np.zeros(100, np.int64), np.arange(100) % 10 == 0
    labels = np.where(numbers, 1, 0)
    assert agreement(served, numbers.astype(np.int64), labels, None, 2).p == pytest.approx(1 / math.comb(100, 10))
    assert agreement(served, numbers.astype(np.int64), labels, np.eye(2)[labels], 2).p < 1e-5


def test_answers_that_are_not_numbers_prefer_nothing() -> None:
    served, numbers = np.zeros(20, np.int64), np.full(20, 3)
    one = agreement(served, numbers, np.zeros(20, np.int64), np.full((20, 4), np.nan), 4)
    assert one.p == 1.0


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
