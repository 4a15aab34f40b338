"""Counts in PostgreSQL (psycopg 3, extra `postgres`): one connection, one row a count, one commit a batch.

A commit returns when the write-ahead log is on the disk (`synchronous_commit`, switched on for our connection). After a server that took over from another and
has lost its last commits, counts are as old as that server. Whatever breaks closes the connection; the next batch opens another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from garrison.errors import ConfigError, MissingExtraError, UnavailableError
from garrison.server.stores.base import DOWN_SECONDS, EVER, MOST_SECONDS, NEAR_END, Counts, Key, Lease

try:
    import psycopg
except ImportError as _missing:
    raise MissingExtraError("psycopg", "postgres") from _missing

logger = logging.getLogger(__name__)

_DOWN = "the database of budgets cannot be reached just now; try again"
_SCHEMA = (
    (
        "CREATE TABLE IF NOT EXISTS garrison_spent (model text, caller text, period text, rows bigint NOT NULL, taken bigint NOT NULL, "
        "PRIMARY KEY (model, caller, period))"
    ),
    "CREATE TABLE IF NOT EXISTS garrison_store (version integer PRIMARY KEY, identity text NOT NULL)",
    "INSERT INTO garrison_store VALUES (1, gen_random_uuid()::text) ON CONFLICT DO NOTHING",
)
_GRACE_SECONDS = 0.5
"""The server's own limit is to come first: it says more."""
_LOCK = 0x6761727269736F6E
"""Two programs that start at once make the tables one after the other."""
_FREE = "(%(limit)s::bigint - s.rows)"
_LEASE = f"""
INSERT INTO garrison_spent AS s (model, caller, period, rows, taken)
SELECT %(model)s, %(caller)s, %(period)s, x, x
FROM (SELECT LEAST(GREATEST(%(needed)s::bigint, LEAST(%(block)s::bigint, %(limit)s::bigint / {NEAR_END})), %(limit)s::bigint) AS x) AS fresh
WHERE %(needed)s::bigint <= %(limit)s::bigint
ON CONFLICT (model, caller, period) DO UPDATE SET
  taken = LEAST(GREATEST(%(needed)s::bigint, LEAST(%(block)s::bigint, {_FREE} / {NEAR_END})), {_FREE}),
  rows = s.rows + LEAST(GREATEST(%(needed)s::bigint, LEAST(%(block)s::bigint, {_FREE} / {NEAR_END})), {_FREE})
WHERE %(needed)s::bigint <= {_FREE}
RETURNING rows, taken"""  # noqa: S608  no value of a request stands in it
_READ = "SELECT rows FROM garrison_spent WHERE model = %s AND caller = %s AND period = %s"


class PostgresStore:
    """See `garrison.server.stores.base.Store`.

    Args:
        url: as libpq reads it; a password is better kept in its password file (`PGPASSFILE`).

    Raises:
        ConfigError: the database cannot be reached at the start, or tables cannot be made in it.
    """

    rolls_back = False

    def __init__(self, url: str, *, may_forget: bool = False) -> None:  # noqa: ARG002  it never does
        self._url = url
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._begun = False
        self._down_until = 0.0
        self._identity = ""
        try:
            self._connection = connection = self._connect()
            where = connection.info
            self.words = f"PostgreSQL, database {where.dbname} at {where.host}:{where.port}"
            with self._in_time(connection), connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                for statement in _SCHEMA:
                    connection.execute(statement.encode())
            self._identity = self._who(connection)
        except (psycopg.Error, OSError, ValueError) as error:
            self._drop()
            raise ConfigError(f"server.store, --store: the database cannot be used: {_short(error)}") from error

    @contextmanager
    def transaction(self, *, patient: bool = False) -> Iterator[Counts]:  # noqa: ARG002
        good = False
        try:
            yield self
            if self._begun:
                self._execute("COMMIT")
                self._begun = False
            good = True
        finally:
            if not good and self._begun:
                self._drop()  # the server rolls back

    def read(self, key: Key) -> int:
        found = self._execute(_READ, key)
        return int(found[0]) if found else 0

    def lease(self, key: Key, needed: int, block: int, limit: int) -> Lease:
        self._begin()
        model, caller, period = key
        given = {"model": model, "caller": caller, "period": period, "needed": needed, "block": block, "limit": limit}
        found = self._execute(_LEASE, given)
        return Lease(self.read(key), 0) if found is None else Lease(int(found[0]), int(found[1]))

    def give_back(self, key: Key, rows: int) -> None:
        self._begin()
        self._execute(
            "UPDATE garrison_spent SET rows = rows - %s WHERE model = %s AND caller = %s AND period = %s", (rows, *key)
        )

    def forget(self, before: str) -> None:
        self._execute("DELETE FROM garrison_spent WHERE period <> %s AND period < %s", (EVER, before))

    def close(self) -> None:
        self._drop()

    def _begin(self) -> None:
        if not self._begun:
            self._execute("BEGIN")
            self._begun = True

    def _execute(self, statement: str, given: Any = None) -> tuple[Any, ...] | None:
        """The first row of the result, if there is one."""
        try:
            connection = self._ready()
            with self._in_time(connection):
                cursor = connection.execute(statement.encode(), given)
                return cursor.fetchone() if cursor.description else None
        except (psycopg.Error, OSError) as error:
            self._drop()
            self._down_until = time.monotonic() + DOWN_SECONDS
            logger.warning("the database of budgets cannot be used: %s", _short(error))
            raise UnavailableError(_DOWN) from error

    def _ready(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is None:
            if self._begun or time.monotonic() < self._down_until:
                raise UnavailableError(_DOWN)
            self._connection = connection = self._connect()
            if self._who(connection) != self._identity:
                raise psycopg.OperationalError(
                    "this is another database than at the start; restart the server if that is meant"
                )
            logger.info("the database of budgets can be used")
        return self._connection

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        milliseconds = round(1000 * MOST_SECONDS)
        return psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=round(MOST_SECONDS),
            application_name="garrison",
            options=f"-c statement_timeout={milliseconds} -c synchronous_commit=on -c idle_in_transaction_session_timeout={milliseconds}",
        )

    def _who(self, connection: psycopg.Connection[tuple[Any, ...]]) -> str:
        with self._in_time(connection):
            found = connection.execute("SELECT identity FROM garrison_store WHERE version = 1").fetchone()
        return "" if found is None else str(found[0])

    def _drop(self) -> None:
        self._begun = False
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                connection.close()

    @contextmanager
    def _in_time(self, connection: psycopg.Connection[tuple[Any, ...]]) -> Iterator[None]:
        """End the connection of a server that says nothing: its kernel may still acknowledge what we send."""
        ours = socket.socket(fileno=os.dup(connection.fileno()))
        watch = threading.Timer(MOST_SECONDS + _GRACE_SECONDS, _end, (ours,))
        watch.daemon = True
        watch.start()
        try:
            yield
        finally:
            watch.cancel()
            watch.join()
            ours.close()


def _end(ours: socket.socket) -> None:
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)


def _short(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
