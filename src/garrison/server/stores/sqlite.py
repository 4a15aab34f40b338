"""Counts in SQLite: write-ahead log, synchronised at each commit. One file that the front workers of one machine share; not for network file systems."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from garrison.errors import ConfigError, UnavailableError
from garrison.server.stores.base import EVER, Counts, Key, Lease, lease_size

logger = logging.getLogger(__name__)

FILE_NAME = "budgets.sqlite3"
_SCHEMA_VERSION = 1
_BUSY_SECONDS = 1.0
"""So long a request waits for another program's lock; its client is told to try again then."""
_OPENING_SECONDS = 10.0
_AGAIN_SECONDS = 0.01
"""Between two tries of what SQLite does not wait for by itself."""
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


class SqliteStore:
    """See `garrison.server.stores.base.Store`.

    Args:
        folder: where the database lies; made where it is not there.

    Raises:
        ConfigError: the folder cannot be written, or holds another database.
    """

    rolls_back = True

    def __init__(self, folder: Path) -> None:
        self.words = str(folder)
        self._database = _open(folder)
        self._begun = False

    @contextmanager
    def transaction(self, *, patient: bool = False) -> Iterator[Counts]:
        try:
            if patient:
                _wait_at_most(self._database, _OPENING_SECONDS)
            with _no_long_wait():
                yield self
                if self._begun:
                    self._database.execute("COMMIT")
                    self._begun = False
        finally:
            if self._begun:
                self._begun = False
                self._database.rollback()
            if patient:
                _wait_at_most(self._database, _BUSY_SECONDS)

    def read(self, key: Key) -> int:
        found = self._database.execute(
            "SELECT rows FROM spent WHERE model = ? AND caller = ? AND period = ?", key
        ).fetchone()
        return 0 if found is None else int(found[0])

    def lease(self, key: Key, needed: int, block: int, limit: int) -> Lease:
        self._begin()
        recorded = self.read(key)
        free = limit - recorded
        if needed > free:
            return Lease(recorded, 0)
        taken = lease_size(needed, block, free)
        self._database.execute(
            "INSERT INTO spent (model, caller, period, rows) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (model, caller, period) DO UPDATE SET rows = rows + excluded.rows",
            (*key, taken),
        )
        return Lease(recorded + taken, taken)

    def give_back(self, key: Key, rows: int) -> None:
        self._begin()
        self._database.execute(
            "UPDATE spent SET rows = rows - ? WHERE model = ? AND caller = ? AND period = ?", (rows, *key)
        )

    def forget(self, before: str) -> None:
        with _no_long_wait():
            self._database.execute("DELETE FROM spent WHERE period <> ? AND period < ?", (EVER, before))

    def close(self) -> None:
        self._database.close()

    def _begin(self) -> None:
        if not self._begun:
            self._database.execute("BEGIN IMMEDIATE")
            self._begun = True


@contextmanager
def _no_long_wait() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if not _is_busy(error):
            raise
        logger.warning("another program holds the budgets for longer than %g s", _BUSY_SECONDS)
        raise UnavailableError("the budgets are in use elsewhere just now; try again") from error


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY  # the low byte says what, the rest where


def _wait_at_most(database: sqlite3.Connection, seconds: float) -> None:
    database.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")


def _open(folder: Path) -> sqlite3.Connection:
    path = folder / FILE_NAME
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        database = sqlite3.connect(path, timeout=_OPENING_SECONDS, isolation_level=None, check_same_thread=False)
        _write_ahead(database)
        database.execute("PRAGMA synchronous = FULL")
        with database:
            database.execute("BEGIN IMMEDIATE")
            _make_tables(database, path)
        _wait_at_most(database, _BUSY_SECONDS)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"the budgets cannot be kept in {path}: {error}; choose a folder with server.state or --state"
        ) from error
    return database


def _write_ahead(database: sqlite3.Connection) -> None:
    """Use a write-ahead log. Where others open the same file, SQLite does not wait for them as it does elsewhere: it refuses at once."""
    end = time.monotonic() + _OPENING_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > end:
                raise
            time.sleep(_AGAIN_SECONDS)
        else:
            return


def _make_tables(database: sqlite3.Connection, path: Path) -> None:
    database.execute(
        "CREATE TABLE IF NOT EXISTS spent (model TEXT, caller TEXT, period TEXT, rows INTEGER NOT NULL, "
        "PRIMARY KEY (model, caller, period)) WITHOUT ROWID"
    )
    found = int(database.execute("PRAGMA user_version").fetchone()[0])
    if found not in {0, _SCHEMA_VERSION}:
        raise ConfigError(f"{path} is of version {found}, this program knows version {_SCHEMA_VERSION}")
    database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
