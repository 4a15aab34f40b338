"""What an audit may ask of the service, pay it, and take; counted over all its trials."""

from __future__ import annotations

import threading
import time

from garrison.audit.plan import Plan
from garrison.errors import AuditSpentError


class Spending:
    """The plan's limits, and what is used of them. A trial is begun only where its whole budget still fits.

    The minutes are looked at before each trial, so the last one may end a little later.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._begun = time.monotonic()
        self._queries = 0
        self._lock = threading.Lock()

    def reserve(self, queries: int, *, paid: bool) -> None:
        """Take so many queries of what is left.

        Args:
            queries: of one trial.
            paid: whether they go to the service itself; the reference arms run here and cost time alone.

        Raises:
            AuditSpentError: the trial does not fit; nothing is taken.
        """
        plan = self._plan
        minutes = (time.monotonic() - self._begun) / 60
        if plan.most_minutes and minutes >= plan.most_minutes:
            raise AuditSpentError(f"the {plan.most_minutes:g} minutes of this audit are over")
        if not paid:
            return
        with self._lock:
            after = self._queries + queries
            if plan.most_queries and after > plan.most_queries:
                left = plan.most_queries - self._queries
                raise AuditSpentError(f"it may ask {queries:,} rows and {left:,} of {plan.most_queries:,} are left")
            if plan.most_usd and after * plan.usd_per_query > plan.most_usd:
                cost, rest = queries * plan.usd_per_query, plan.most_usd - self._queries * plan.usd_per_query
                raise AuditSpentError(f"it may cost ${cost:,.2f} and ${rest:,.2f} of ${plan.most_usd:,.2f} are left")
            self._queries = after

    def give_back(self, queries: int) -> None:
        """What a trial reserved and did not ask."""
        with self._lock:
            self._queries -= queries
