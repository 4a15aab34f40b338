"""The meter: every row counts, the budget holds, refusals are data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from tests.attacks.services import Linear, rows
from tests.attacks.tactics.worlds import Accounts

from garrison.attacks.oracle import Answers, LabelsOnly, MeteredOracle
from garrison.errors import BudgetExhaustedError, QueryBudgetError, ThrottledError
from garrison.types import Array


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


@pytest.mark.parametrize("budget", [10, 12, 20, 35, 60, 100])
def test_asking_again_never_exceeds_the_budget(budget: int) -> None:
    """Every request is refused, so that each row would be asked twice."""
    service = Linear(refuses_above=-1.0)
    meter = MeteredOracle(service, budget, rows_a_request=10)
    assert meter.query(rows(min(budget, 30))).refused.all()
    assert meter.rows == sum(len(part) for part in service.asked) == min(budget, 40)  # then row by row
    assert (meter.refused, meter.failed) == (min(budget, 30), 0)
    assert meter.remaining >= 0


def test_of_a_refused_request_as_much_is_asked_again_as_the_budget_holds() -> None:
    x = np.minimum(rows(10), np.float32(0.85))
    x[3, 0] = 0.95
    meter = MeteredOracle(Linear(refuses_above=0.9), 16, rows_a_request=10)
    answers = meter.query(x)
    assert (~answers.refused).tolist() == [True] * 3 + [False] + [True] * 2 + [False] * 4
    assert (meter.rows, meter.refused) == (16, 5)


@dataclass(slots=True)
class Metered(Accounts):
    """Each account may ask so many rows."""

    allows: int = 12

    def query(self, x: Array) -> Answers:
        return self.query_as(x, 0)

    def query_as(self, x: Array, account: int) -> Answers:
        if self.by_account.get(account, 0) + len(x) > self.allows:
            self.asked.append(x)
            raise BudgetExhaustedError("no more")
        return Accounts.query_as(self, x, account)


def test_an_account_that_may_ask_no_more_is_a_refusal_and_is_not_asked_on() -> None:
    service = Metered()
    meter = MeteredOracle(service, 500, rows_a_request=10)
    answers = meter.query(rows(200))
    assert (~answers.refused).sum() == 12  # the second request of ten is refused; two of its rows are not
    assert (meter.refused, meter.failed) == (188, 0)
    assert len(service.asked) == 1 + 1 + 2 + 1
    assert meter.rows == 210
    assert (~meter.query(rows(10), account=1).refused).all()  # another account is another matter


def test_who_asks_too_fast_or_too_much_is_refused_and_does_not_fail() -> None:
    class Throttling(Linear):
        def query(self, x: Array) -> Answers:
            raise ThrottledError("slowly")

    meter = MeteredOracle(Throttling(), 10)
    assert meter.query(rows(3)).refused.all()
    assert (meter.refused, meter.failed) == (3, 0)


def test_labels_only_hides_the_probabilities() -> None:
    service = Linear()
    seen = LabelsOnly(service)
    assert seen.facts.soft is False
    assert seen.query(rows(3)).probabilities is None
    assert (seen.query(rows(3)).labels == service.truth(rows(3)).argmax(axis=1)).all()
