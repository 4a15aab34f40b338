"""The meter: every row counts, the budget holds, refusals are data."""

from __future__ import annotations

import numpy as np
import pytest
from tests.attacks.services import Linear, rows

from garrison.attacks.oracle import LabelsOnly, MeteredOracle
from garrison.errors import QueryBudgetError


def test_the_budget_is_held_to_the_row_and_before_anything_is_asked() -> None:
    service = Linear()
    meter = MeteredOracle(service, 10)
    meter.query(rows(7))
    assert meter.remaining == 3
    with pytest.raises(QueryBudgetError, match="4 rows were asked for and 3 of the budget of 10"):
        meter.query(rows(4))
    assert sum(len(x) for x in service.asked) == 7
    assert len(meter.query(rows(3)).labels) == 3


def test_a_refused_request_is_asked_again_row_by_row_and_counted() -> None:
    service = Linear(refuses_above=0.9)
    x = np.minimum(rows(20), np.float32(0.85))
    x[[3, 15], 0] = 0.95
    bad = x[:, 0] > 0.9
    meter = MeteredOracle(service, 100, rows_a_request=10)
    answers = meter.query(x)
    assert (answers.refused == bad).all()
    expected = service.truth(x).argmax(axis=1)
    assert (answers.labels[~bad] == expected[~bad]).all()
    assert meter.refused == 2
    assert meter.failed == 0
    assert meter.rows == sum(len(part) for part in service.asked) == 30  # one request of ten was asked twice


def test_asking_again_never_exceeds_the_budget() -> None:
    meter = MeteredOracle(Linear(refuses_above=-1.0), 12, rows_a_request=10)
    assert meter.query(rows(10)).refused.all()
    assert meter.rows == 10


def test_labels_only_hides_the_probabilities() -> None:
    service = Linear()
    seen = LabelsOnly(service)
    assert seen.facts.soft is False
    assert seen.query(rows(3)).probabilities is None
    assert (seen.query(rows(3)).labels == service.truth(rows(3)).argmax(axis=1)).all()
