"""How much the operator lets each caller ask, and all callers together of one model: rows a day, and requests a second.

Where it stands: in the key file (`garrison keys add --rows-per-day`), else in `[callers.NAME]`, else in `[callers."*"]`; for models in `[models.NAME]`. This is
beside the budget in the signed guard, which only its owner can loosen.

Requests a second are held by the generic cell rate algorithm (ITU-T I.371; a leaky bucket in one number): a second's worth at once, and then evenly.
Invariants: memory is bounded, and no look-up waits for anything. Callers by address are kept apart from those with a name, so that they cannot fill the table for these; and of one
IPv6 network of 48 bits, which one person may have, at most `MOST_OF_NETWORK` addresses are counted each for itself, all others together.

Not shared: each front process counts requests a second for itself, so with `--workers N` a caller who spreads its connections gets up to N times as many.
Rows a day are exact over all of them (`garrison.server.model_budget`).
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping
from functools import lru_cache

from garrison.config import CallerConfig, ModelConfig
from garrison.server.auth import ADDRESS
from garrison.server.key_file import KeyEntry
from garrison.types import ANYBODY

_MOST_COUNTED = 65_536
MOST_OF_NETWORK = 1_024
_NETWORK_BYTES, _NAMED_BITS = 6, "64"
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
        self._named: dict[str, float] = {}
        self._by_address: dict[str, float] = {}
        self._of_network: dict[str, int] = {}
        self._swept = -math.inf

    def take(self, name: str, rate: float) -> float:
        """One event, if it may be.

        Args:
            rate: events a second, above 0. A whole second's worth, at least one, may come at once.

        Returns:
            0.0, or the seconds until it may be.
        """
        now, gap = self._clock(), 1.0 / rate
        counted = self._named
        if name.startswith(ADDRESS):
            counted, name = self._by_address, self._counted_as(name)
        at = max(counted.get(name, now), now)
        wait = at - now - max(1.0 - gap, 0.0)
        if wait > 1e-9:  # rounding
            return wait
        if name not in counted and not self._has_room(counted, now):
            return _SWEEP_SECONDS  # so many callers at once: this one has to wait its turn
        if name not in counted and counted is self._by_address:
            network = _network(name)
            if network:
                self._of_network[network] = self._of_network.get(network, 0) + 1
        counted[name] = at + gap
        return 0.0

    def sweep(self) -> None:
        """Forget whom nothing holds back any more."""
        now = self._swept = self._clock()
        for counted in (self._named, self._by_address):
            for name in [name for name, at in counted.items() if at <= now]:
                del counted[name]
        self._of_network.clear()
        for name in self._by_address:
            network = _network(name)
            if network:
                self._of_network[network] = self._of_network.get(network, 0) + 1

    def _has_room(self, counted: dict[str, float], now: float) -> bool:
        if len(counted) >= _MOST_COUNTED and now - self._swept >= _SWEEP_SECONDS:
            self.sweep()
        return len(counted) < _MOST_COUNTED

    def _counted_as(self, name: str) -> str:
        """An address itself, or the network that too many come from."""
        network = "" if name in self._by_address else _network(name)
        return network if network and self._of_network.get(network, 0) >= MOST_OF_NETWORK else name


@lru_cache(maxsize=4096)
def _network(name: str) -> str:
    """Of an IPv6 address, as callers without a key are named ("ip:2001:db8:1:2::/64"), the network that it is counted with; "" for any other."""
    host, _, bits = name.removeprefix(ADDRESS).partition("/")
    if bits != _NAMED_BITS:
        return ""
    try:
        front = socket.inet_pton(socket.AF_INET6, host)[:_NETWORK_BYTES]
    except OSError:
        return ""
    return f"{ADDRESS}{socket.inet_ntop(socket.AF_INET6, front.ljust(16, bytes(1)))}/{8 * _NETWORK_BYTES}"
