"""Counts in Redis or Valkey (redis-py, extra `redis`): one key a count, changed by a script that the server runs in one step.

Both keep data in memory. So that a restart forgets nothing, the server must write each change to the disk before it answers (`appendonly yes`,
`appendfsync always`) and must never evict (`maxmemory-policy noeviction`); both are looked at whenever a connection is opened. A marker in the database, looked at
by each script, tells when the database is another one or was emptied: nothing is leased then. Not offered: Redis Cluster.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from garrison.errors import ConfigError, MissingExtraError, UnavailableError
from garrison.server.stores.base import DOWN_SECONDS, EVER, MOST_SECONDS, NEAR_END, Counts, Key, Lease

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as _missing:
    raise MissingExtraError("redis", "redis") from _missing

logger = logging.getLogger(__name__)

_DOWN = "the database of budgets cannot be reached just now; try again"
_PREFIX = "garrison:spent:"
_MARKER = "garrison:store:1"
_KEPT_SECONDS = 3 * 86_400
"""Counts of a day go after this."""
_SAME = "if redis.call('GET', KEYS[2]) ~= ARGV[1] then return redis.error_reply('GARRISON another database') end\n"
_READ = _SAME + "return redis.call('GET', KEYS[1]) or '0'"
_LEASE = (
    _SAME
    + f"""
local recorded = tonumber(redis.call('GET', KEYS[1]) or '0')
local needed, block, free = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]) - recorded
if needed > free then return {{recorded, 0}} end
local taken = math.min(math.max(needed, math.min(block, math.floor(free / {NEAR_END}))), free)
redis.call('INCRBY', KEYS[1], string.format('%.0f', taken))
if ARGV[5] ~= '0' then redis.call('EXPIRE', KEYS[1], ARGV[5]) end
return {{recorded + taken, taken}}"""
)
_GIVE_BACK = _SAME + "return redis.call('DECRBY', KEYS[1], ARGV[2])"


class RedisStore:
    """See `garrison.server.stores.base.Store`. Each lease is durable by itself.

    Args:
        url: redis://, rediss:// (TLS), valkey:// or valkeys:// (TLS).
        may_forget: take a server that may lose its last second.

    Raises:
        ConfigError: the server cannot be reached at the start, may forget or evict, or does not say whether it does.
    """

    rolls_back = False

    def __init__(self, url: str, *, may_forget: bool = False) -> None:
        self._may_forget = may_forget
        self._down_until = 0.0
        self._marker = ""
        self._checked = False
        try:
            self._client = redis.Redis.from_url(
                url.replace("valkey", "redis", 1) if url.lower().startswith("valkey") else url,
                socket_timeout=MOST_SECONDS,
                socket_connect_timeout=MOST_SECONDS,
                retry=Retry(NoBackoff(), 0),  # a lease that was asked for twice would be charged twice
                decode_responses=True,
                single_connection_client=False,
                max_connections=1,
                health_check_interval=0,
            )
            given = self._client.connection_pool.connection_kwargs
            self.words = f"Redis or Valkey, database {given.get('db', 0)} at {given.get('host', given.get('path'))}:{given.get('port', '')}"
            self._lease, self._read, self._give = (
                self._client.register_script(text) for text in (_LEASE, _READ, _GIVE_BACK)
            )
            self._check()
        except (redis.RedisError, OSError, ValueError) as error:
            raise ConfigError(f"server.store, --store: the database cannot be used: {error}") from error

    @contextmanager
    def transaction(self, *, patient: bool = False) -> Iterator[Counts]:  # noqa: ARG002
        yield self

    def read(self, key: Key) -> int:
        return int(self._run(self._read, key))

    def lease(self, key: Key, needed: int, block: int, limit: int) -> Lease:
        keep = 0 if key[2] == EVER else _KEPT_SECONDS
        recorded, taken = self._run(self._lease, key, needed, block, limit, keep)
        return Lease(int(recorded), int(taken))

    def give_back(self, key: Key, rows: int) -> None:
        self._run(self._give, key, rows)

    def forget(self, before: str) -> None:
        """Nothing to do: counts of a day end by themselves."""

    def close(self) -> None:
        with contextlib.suppress(redis.RedisError, OSError):
            self._client.close()

    def _run(self, script: Any, key: Key, *given: int) -> Any:
        if time.monotonic() < self._down_until:
            raise UnavailableError(_DOWN)
        try:
            if not self._checked:
                self._check()
                logger.info("the database of budgets can be used")
            name = _PREFIX + msgspec.json.encode(key).decode()
            return script(keys=[name, _MARKER], args=[self._marker, *given])
        except (redis.RedisError, OSError, ConfigError) as error:
            self._checked = False
            self._down_until = time.monotonic() + DOWN_SECONDS
            with contextlib.suppress(redis.RedisError, OSError):
                self._client.connection_pool.disconnect()
            logger.warning("the database of budgets cannot be used: %s", error)
            raise UnavailableError(_DOWN) from error

    def _check(self) -> None:
        """Whether the database keeps what it is told, and is the one that it was."""
        if not self._may_forget:
            self._check_memory()
        if not self._marker:
            self._client.set(_MARKER, secrets.token_hex(16), nx=True)
            self._marker = str(self._client.get(_MARKER))
        elif self._client.get(_MARKER) != self._marker:
            raise ConfigError(
                "the database is another one than at the start, or was emptied; restart the server if that is meant"
            )
        self._checked = True

    def _check_memory(self) -> None:
        try:
            found: Any = {
                name: self._client.config_get(name).get(name, "")
                for name in ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
            }
        except redis.ResponseError as error:
            raise ConfigError(
                "server.store, --store: the database does not say whether it keeps what it is told (CONFIG GET is not allowed); "
                "server.store_may_forget, --store-may-forget takes it as it is"
            ) from error
        if (found["appendonly"], found["appendfsync"]) != ("yes", "always"):
            raise ConfigError(
                f"server.store, --store: expected appendonly yes and appendfsync always, found {found['appendonly']} and {found['appendfsync']}: a restart "
                "would give rows back; set both, or take it with server.store_may_forget, --store-may-forget"
            )
        if found["maxmemory"] != "0" and found["maxmemory-policy"] != "noeviction":
            raise ConfigError(
                f"server.store, --store: expected maxmemory-policy noeviction, found {found['maxmemory-policy']}: it would forget counts when memory is full"
            )
