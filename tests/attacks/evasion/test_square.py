from __future__ import annotations

import numpy as np
import pytest
from tests.attacks.evasion.pictures import Shown, carried_out

from garrison.attacks.evasion.base import Start
from garrison.attacks.evasion.square import Square, margin, side_of
from garrison.attacks.oracle import Answers
from garrison.errors import AuditError


def test_squares_shrink_as_the_paper_says() -> None:
    sides = [
        side_of(0.8, share, (1, 28, 28), odd=False) for share in (0, 0.002, 0.006, 0.03, 0.07, 0.15, 0.3, 0.5, 0.9)
    ]
    assert sides == [25, 18, 13, 9, 6, 4, 3, 2, 1]
    assert all(side_of(0.8, share / 20, (3, 8, 8), odd=True) % 2 for share in range(20))


def answer(p: list[float], label: int | None = None) -> Answers:
    one = np.array([p])
    first = one.argmax(axis=1) if label is None else np.array([label])
    nobody = np.zeros(1, dtype=np.bool_)
    return Answers(first, one, nobody, nobody)


def test_the_margin_is_that_of_logits_and_the_label_decides_a_tie() -> None:
    start = Start(np.zeros((1, 2, 2)), 0, soft=True, budget=9, others=np.zeros((0, 1, 2, 2)))
    assert margin(answer([0.5, 0.25, 0.25]), start) == pytest.approx(np.log(2))
    assert margin(answer([0.2, 0.8, 0.0]), start) == pytest.approx(-np.log(4))
    assert margin(answer([0.5, 0.5, 0.0], 1), start) < 0
    assert margin(answer([1.0, 0.0, 0.0]), start) < np.inf


def test_the_change_of_a_square_is_all_or_nothing() -> None:
    service = Shown()
    pictures = service.pictures()
    trial = carried_out(Square(epsilon=0.15), service)
    moved = np.abs(trial.found - pictures.x)
    whole = (moved > 0.149) | (trial.found == 0) | (trial.found == 1)
    assert whole.mean() > 0.999


def test_probabilities_need_fewer_questions_than_labels() -> None:
    attack, pictures = Square(epsilon=0.05), Shown().pictures(24)
    soft = carried_out(attack, Shown(), budget=60, pictures=pictures)
    labels = carried_out(attack, Shown(soft=False), budget=60, pictures=pictures)
    assert soft.fools["served"].sum() > labels.fools["served"].sum()


def test_tables_are_not_pictures() -> None:
    service = Shown(shape=(64,))
    with pytest.raises(AuditError, match="squares of a picture"):
        carried_out(Square(), service)
