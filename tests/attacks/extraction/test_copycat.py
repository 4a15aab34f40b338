"""Copycat: labels alone, and copies that cost nothing."""

from __future__ import annotations

import numpy as np
from tests.attacks.services import Linear, facts, rows, softmax

from garrison.attacks.exam import Exam
from garrison.attacks.extraction.copycat import Copycat, changed, copied
from garrison.attacks.extraction.random_labels import RandomLabels
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, LabelsOnly, OracleFacts
from garrison.types import Array


def exam() -> Exam:
    x = rows(400, seed=11)
    truth = Linear().truth(x)
    return Exam(x, truth.argmax(axis=1), truth)


def test_it_steals_from_labels_and_the_control_does_not() -> None:
    known = Knowledge(rows(1000))
    attack = Copycat(learning_rate=1e-2)
    seen, unseen = (
        attack.carry_out(service, known, exam(), budget=600, seed=0).scores["fidelity"]
        for service in (Linear(), LabelsOnly(Linear()))
    )
    assert (seen == unseen).all()  # probabilities are not looked at
    assert seen.mean() > 0.8
    control = RandomLabels(learning_rate=1e-2).carry_out(Linear(), known, exam(), budget=600, seed=0)
    assert control.scores["fidelity"].mean() < 0.6


def test_a_copy_is_moved_or_mirrored_and_nothing_else() -> None:
    x = np.zeros((300, 2, 14, 12), np.float32)
    x[:, 0, 6, 4], x[:, 1, 6, 4] = 1, 2
    found = changed(x, 2, np.random.default_rng(0))
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    row, channel, height, width = np.nonzero(found)
    assert len(row) == 600
    assert (found[row, channel, height, width] == channel + 1).all()
    assert set(height) == {4, 5, 6, 7, 8}
    assert set(width) == {2, 3, 4, 5, 6} | {5, 6, 7, 8, 9}  # at 4, or mirrored at 7
    assert (changed(x, 0, np.random.default_rng(0))[..., 4].sum(axis=(1, 2)) > 0).mean() < 0.7


def test_a_copy_is_the_same_wherever_the_channels_stand() -> None:
    x = np.random.default_rng(0).random((9, 3, 14, 13), dtype=np.float32)
    first = copied(x, 2, np.random.default_rng(1))
    last = copied(np.moveaxis(x, 1, -1), 2, np.random.default_rng(1))
    assert np.array_equal(np.moveaxis(last, -1, 1), first)
    assert np.array_equal(copied(x[:, 0], 2, np.random.default_rng(1)), first[:, 0])


def test_copies_are_not_asked() -> None:
    """A small model of images: which half is brighter."""

    class Halves:
        def __init__(self) -> None:
            self.asked = 0

        @property
        def facts(self) -> OracleFacts:
            return facts((1, 12, 12), 2)

        def query(self, x: Array) -> Answers:
            self.asked += len(x)
            top, bottom = x[:, 0, :6].mean(axis=(1, 2)), x[:, 0, 6:].mean(axis=(1, 2))
            p = softmax(20 * np.stack([top, bottom], axis=1))
            nobody = np.zeros(len(x), dtype=np.bool_)
            return Answers(p.argmax(axis=1).astype(np.int64), p, nobody, nobody)

    service = Halves()
    x = np.random.default_rng(0).random((200, 1, 12, 12), dtype=np.float32)
    held = x[:50]
    trial = Copycat(copies=2, epochs=3).carry_out(
        service, Knowledge(x), Exam(held, service.query(held).labels), budget=100, seed=0
    )
    assert service.asked == 150  # 50 for the exam
    assert trial.queries == 100
