"""How much the operator lets each caller ask, and all callers together of one model: rows a day, and requests a second.

Where it stands: in the key file (`garrison keys add --rows-per-day`), else in `[callers.NAME]`, else in `[callers."*"]`; for models in `[models.NAME]`. This is
beside the budget in the signed guard, which only its owner can loosen.

Requests a second are held by the generic cell rate algorithm (ITU-T I.371; a leaky bucket in one number): a second's worth at once, and then evenly.
Invariants: memory is bounded, and no look-up waits for anything.

Not shared: each front process counts requests a second for itself, so with `--workers N` a caller who spreads its connections gets up to N times as many.
Rows a day are exact over all of them (`garrison.server.model_budget`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from garrison.config import CallerConfig, ModelConfig
from garrison.server.key_file import KeyEntry
from garrison.types import ANYBODY

_MOST_COUNTED = 65_536
_SWEEP_SECONDS = 1.0
_NOBODY = CallerConfig()
_FREE = ModelConfig()

EntryOf = Callable[[str], KeyEntry | None]


class Quotas:
    """Says what a caller, and a model, may have.

    Args:
        callers: by name, or `ANYBODY`.
        models: by name.
        entry: what the key file says of a caller.
        keys_count: whether the key file limits anybody's rows, and whether anybody's requests a second.
    """

    def __init__(
        self,
        callers: Mapping[str, CallerConfig] | None = None,
        models: Mapping[str, ModelConfig] | None = None,
        entry: EntryOf = lambda _: None,
        keys_count: Callable[[], tuple[bool, bool]] = lambda: (False, False),
    ) -> None:
        self._entry = entry
        self._keys_count = keys_count
        self.use(callers or {}, models or {})

    def use(self, callers: Mapping[str, CallerConfig], models: Mapping[str, ModelConfig]) -> None:
        """Take these quotas in place of those before."""
        self._callers, self._models = dict(callers), dict(models)
        self._anybody = self._callers.get(ANYBODY, _NOBODY)
        self._settings_count = self.would_count(callers, models)
        found = (quota.requests_per_second for quotas in (callers, models) for quota in quotas.values())
        self._settings_hold = any(found)

    @staticmethod
    def would_count(callers: Mapping[str, CallerConfig], models: Mapping[str, ModelConfig]) -> bool:
        """Whether such settings limit anybody's rows a day."""
        found = (quota.rows_per_day for quotas in (callers, models) for quota in quotas.values())
        return any(found)

    def rows_of(self, caller: str) -> int:
        """Rows a day, over all models; 0 for no limit."""
        entry = self._entry(caller)
        own = entry.rows_per_day if entry is not None else 0
        return own or self._callers.get(caller, self._anybody).rows_per_day

    def rate_of(self, caller: str) -> float:
        """Requests a second; 0 for no limit."""
        entry = self._entry(caller)
        own = entry.requests_per_second if entry is not None else 0.0
        return own or self._callers.get(caller, self._anybody).requests_per_second

    def rows_of_model(self, model: str) -> int:
        """Rows a day of all callers together; 0 for no limit."""
        return self._models.get(model, _FREE).rows_per_day

    def rate_of_model(self, model: str) -> float:
        """Requests a second of all callers together; 0 for no limit."""
        return self._models.get(model, _FREE).requests_per_second

    @property
    def count_rows(self) -> bool:
        """Whether anybody's rows a day are limited."""
        return self._settings_count or self._keys_count()[0]

    @property
    def count_requests(self) -> bool:
        """Whether anybody's requests a second are limited."""
        return self._settings_hold or self._keys_count()[1]


class Rates:
    """Holds names to a number of events a second.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next: dict[str, float] = {}
        self._swept = -math.inf

    def take(self, name: str, rate: float) -> float:
        """One event, if it may be.

        Args:
            rate: events a second, above 0. A whole second's worth, at least one, may come at once.

        Returns:
            0.0, or the seconds until it may be.
        """
        now, gap = self._clock(), 1.0 / rate
        at = max(self._next.get(name, now), now)
        wait = at - now - max(1.0 - gap, 0.0)
        if wait > 1e-9:  # rounding
            return wait
        if len(self._next) >= _MOST_COUNTED and name not in self._next:
            if now - self._swept >= _SWEEP_SECONDS:
                self.sweep()
            if len(self._next) >= _MOST_COUNTED:
                return _SWEEP_SECONDS  # so many callers at once: this one has to wait its turn
        self._next[name] = at + gap
        return 0.0

    def sweep(self) -> None:
        """Forget whom nothing holds back any more."""
        now = self._swept = self._clock()
        if self._next:
            self._next = {name: at for name, at in self._next.items() if at > now}
