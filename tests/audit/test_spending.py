"""What an audit may spend is held, over all trials."""

from __future__ import annotations

import time

import pytest
from tests.audit.worlds import PLAN

from garrison.audit.plan import parse_plan, within
from garrison.audit.spending import Spending
from garrison.errors import AuditSpentError

FREE = parse_plan(PLAN, "a test")


def test_without_limits_everything_fits() -> None:
    Spending(FREE).reserve(10**9, paid=True)


def test_queries_and_dollars_are_reserved_and_given_back() -> None:
    spending = Spending(within(FREE, queries=100))
    spending.reserve(80, paid=True)
    with pytest.raises(AuditSpentError, match="20 of 100 are left"):
        spending.reserve(30, paid=True)
    spending.give_back(40)
    spending.reserve(30, paid=True)
    dear = Spending(within(FREE, usd=0.1))  # 50 rows at 2 dollars a thousand
    dear.reserve(40, paid=True)
    with pytest.raises(AuditSpentError, match=r"\$0.02 of \$0.10 are left"):
        dear.reserve(40, paid=True)


def test_what_is_asked_of_a_reference_costs_nothing() -> None:
    Spending(within(FREE, queries=1)).reserve(1000, paid=False)


def test_no_trial_is_begun_after_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    spending = Spending(within(FREE, minutes=1.0))
    spending.reserve(1, paid=False)
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(AuditSpentError, match="1 minutes of this audit are over"):
        spending.reserve(1, paid=False)
