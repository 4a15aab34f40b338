"""What a caller has left, in the headers RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers).

    RateLimit-Policy: "rows";q=5000;w=86400, "distinct-rows";q=2000;w=86400
    RateLimit: "rows";r=4990;t=3600, "distinct-rows";r=1995;t=3600

q is the budget of a period of w seconds, r what is left of it, t the seconds until it begins anew; without w and t it never does. "rows-per-day" is the operator's
quota for this caller over all models; "requests" stands there where one is refused that came too fast. They are the server's word: no enclave vouches for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from garrison.server.http_errors import Headers
from garrison.server.model_budget import Left, ModelBudget

POLICY_HEADER, LIMIT_HEADER, RETRY_HEADER = "ratelimit-policy", "ratelimit", "retry-after"
_DAY_SECONDS = 86_400
_TIME = ";t="


class RateLimits:
    """Writes the headers of one model.

    Args:
        budget: what it allows each caller.
        clock: seconds since the epoch.
    """

    def __init__(self, budget: ModelBudget, clock: Callable[[], float] = time.time) -> None:
        self._budget = budget
        self._daily = budget.period == "day"
        window = f";w={_DAY_SECONDS}" if self._daily else ""
        policies = [f'"rows";q={budget.rows}{window}'] if budget.rows else []
        policies += [f'"distinct-rows";q={budget.distinct}{window}'] if budget.distinct else []
        self._policy = ", ".join(policies)
        self._distinct = bool(budget.distinct)
        self._clock = clock
        self._second, self._until = -1, ""

    def headers(self, left: Left | None, *, refused: bool = False, caller: str = "") -> Headers:
        """The headers of an answer.

        Args:
            left: what the caller has left after it; None where that is not known, and then there are none.
            refused: because a budget does not cover the request: it says when to come again, if ever.
            caller: whose it is.
        """
        if left is None or (left.rows < 0 and left.day < 0 and left.shared < 0):
            return []
        until = self._time_left() if self._daily or left.day >= 0 or left.shared >= 0 else ""
        policy = told = ""
        if left.rows >= 0:
            window = until if self._daily else ""
            policy, told = self._policy, f'"rows";r={left.rows}{window}'
            if self._distinct:
                told = f'{told}, "distinct-rows";r={left.fresh}{window}'
        if left.day >= 0 and self._budget.quotas is not None:
            so_far = (f"{policy}, ", f"{told}, ") if told else ("", "")
            policy = f'{so_far[0]}"rows-per-day";q={self._budget.quotas.rows_of(caller)};w={_DAY_SECONDS}'
            told = f'{so_far[1]}"rows-per-day";r={left.day}{until}'
        found = [(POLICY_HEADER, policy), (LIMIT_HEADER, told)] if told else []
        ends = refused and until and (self._daily or left.rows != 0)
        return [*found, (RETRY_HEADER, until.removeprefix(_TIME))] if ends else found

    def _time_left(self) -> str:
        now = int(self._clock())
        if now != self._second:
            self._second, self._until = now, f"{_TIME}{_DAY_SECONDS - now % _DAY_SECONDS}"
        return self._until


def too_fast(rate: float, wait: float) -> Headers:
    """The headers of a request that came too fast.

    Args:
        rate: requests a second.
        wait: seconds until the next may come.
    """
    seconds = max(1, math.ceil(wait))
    return [
        (POLICY_HEADER, f'"requests";q={max(1, math.floor(rate))};w=1'),
        (LIMIT_HEADER, f'"requests";r=0;t={seconds}'),
        (RETRY_HEADER, str(seconds)),
    ]
