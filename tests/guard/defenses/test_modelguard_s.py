from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.guard.conftest import CLASSES, PLAIN_CODES, make_facts, make_scores
from tests.guard.test_perturbing import answered, answers, defense_of

from garrison.errors import GuardError
from garrison.guard.defenses.modelguard_s import ModelguardS, nearest


def book(seed: int = 0) -> list[list[float]]:
    more = make_scores(60, seed, 2.0).values.astype(np.float64)
    best = np.sort(more, axis=1)
    return [*PLAIN_CODES, *more[best[:, -1] - best[:, -2] > 0.05].tolist()]


def test_the_nearest_code_of_the_same_class_is_served() -> None:
    codes, p = np.array(book()), answers(np.float64)
    found = nearest(np, p, codes)
    for one, served in zip(p, found, strict=True):
        own = codes[codes.argmax(axis=1) == one.argmax()]
        assert np.abs(one - served).sum() == pytest.approx(np.abs(one - own).sum(axis=1).min())
        assert served.argmax() == one.argmax()


def test_an_answer_within_the_budget_tells_its_code_and_no_more() -> None:
    p = answers()
    q = answered(defense_of("modelguard-s", codes=book(), epsilon=2.0), p)
    codes = {tuple(row) for row in np.array(book(), np.float32).round(4).tolist()}
    assert {tuple(row) for row in q.round(4).tolist()} <= codes
    few = defense_of("modelguard-s", codes=PLAIN_CODES)
    assert isinstance(few, ModelguardS)
    assert few.bits == 0
    assert (
        len(np.unique(answered(defense_of("modelguard-s", codes=PLAIN_CODES, epsilon=2.0), p).round(4), axis=0))
        == CLASSES
    )


def test_an_answer_beyond_the_budget_goes_towards_its_code() -> None:
    p = np.array([[0.55, 0.45, *[0.0] * (CLASSES - 2)]])
    q = answered(defense_of("modelguard-s", codes=PLAIN_CODES, epsilon=0.2), p)
    assert np.abs(q - p).sum() == pytest.approx(0.2)
    step = np.array(PLAIN_CODES[0]) - p[0]
    np.testing.assert_allclose(q[0] - p[0], step * 0.2 / np.abs(step).sum(), atol=1e-6)


@pytest.mark.parametrize(
    ("codes", "why"),
    [
        ([], "one length"),
        ([[0.5, 0.5], [1.0]], "one length"),
        ([[0.9, 0.2]], "sum to 1"),
        ([[1.2, -0.2]], "sum to 1"),
        ([[0.502, 0.498]], "before the second"),
        ([[0.9, 0.1]] * 9000, "at most"),
    ],
)
def test_a_codebook_that_is_none_is_refused(codes: Any, why: str) -> None:
    with pytest.raises(GuardError, match=why):
        defense_of("modelguard-s", codes=codes)


def test_a_codebook_of_another_model_is_refused() -> None:
    with pytest.raises(GuardError, match="have 2 classes"):
        defense_of("modelguard-s", codes=[[0.9, 0.1], [0.1, 0.9]]).check(make_facts())
    with pytest.raises(GuardError, match="none has class 0 first"):
        defense_of("modelguard-s", codes=PLAIN_CODES[1:]).check(make_facts())
