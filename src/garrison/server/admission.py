"""What is asked of a request before anything of it is read: who it is from, what its caller may do, and whether it comes too fast.

All transports use this, so that none of them is a way around it. To be used on one event loop.
"""

from __future__ import annotations

from typing import NamedTuple

from garrison.errors import BudgetExhaustedError, ForbiddenError, NotFoundError, TooFastError
from garrison.server.auth import Authenticator
from garrison.server.hosting import Model
from garrison.server.http_errors import Headers
from garrison.server.identity import Identity, Operation, Scopes
from garrison.server.quotas import Quotas, Rates
from garrison.server.rate_limits import too_fast


class TurnedAway(NamedTuple):
    """Why a request is not read: an error's code and message, and headers that say when to come again."""

    code: str
    message: str
    headers: Headers


class Admission:
    """See the module's docstring.

    Args:
        authenticator: tells callers apart.
        quotas: how much each may ask; None for no quotas.
    """

    def __init__(self, authenticator: Authenticator, quotas: Quotas | None = None) -> None:
        self._auth = authenticator
        self.quotas = quotas or Quotas()
        self._rates = Rates()

    def identify(self, authorization: str | None, peer: str) -> Identity:
        """Who asks; see `Authenticator.identify`."""
        return self._auth.identify(authorization, peer)

    def too_fast(self, caller: str, model: Model) -> TurnedAway | None:
        """For who asks more often than the operator lets it, or all of them together of this model."""
        quotas, name = self.quotas, model.name
        if not quotas.count_requests:
            return None
        for who, rate in ((caller, quotas.rate_of(caller)), (f"/{name}", quotas.rate_of_model(name))):
            wait = self._rates.take(who, rate) if rate else 0.0
            if wait:
                told = f"expected at most {rate:g} requests a second; try again"
                return TurnedAway(TooFastError.code, told, too_fast(rate, wait))
        return None

    def turned_away(self, caller: str, model: Model) -> TurnedAway | None:
        """For whom the operator's quotas keep out now, before anything of a request is read."""
        return self.too_fast(caller, model) or self._used_up(caller, model)

    def _used_up(self, caller: str, model: Model) -> TurnedAway | None:
        """For whom the operator's rows of today are known to be used up: nothing is computed for it in vain."""
        why = model.budget.why_used_up(caller)
        if not why:
            return None
        left = model.budget.left_at_once((caller,))
        more = model.rate_limits.headers(None if left is None else left[caller], refused=True, caller=caller)
        return TurnedAway(BudgetExhaustedError.code, why, more)

    def sweep(self) -> None:
        """Look for changed keys, and forget who waits for nothing any more; to be called now and then."""
        self._auth.refresh()
        self._rates.sweep()

    def read_keys_again(self) -> None:
        """For SIGHUP. What is in flight goes on."""
        self._auth.refresh(now=True)


def allow(operation: Operation, model: Model, scopes: Scopes, not_found: NotFoundError) -> None:
    """Raises `not_found` where a caller does not see a model, and `ForbiddenError` where it may not do this with it."""
    if scopes.everything:
        return
    if not scopes.sees(model.name, model.version):
        raise not_found
    if not scopes.may(operation, model.name, model.version):
        raise ForbiddenError(f"expected the scope {operation}:{model.name}; the key or token does not cover it")
