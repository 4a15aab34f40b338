"""Rows that callers have used: durable, charged before an answer leaves.

The counts lie in SQLite (write-ahead log, synchronised at each commit). To keep the disk off the path of most requests, rows
are taken from a caller's budget in blocks (leases) and used up in memory. Invariants: what stands in the database is never less
than what was used, so a crash can cost a caller the rest of a lease (at most 1/64 of its budget) and can never give rows back;
a graceful stop gives unused leases back, and so does one that nobody has used for a while; several servers may share one database, and
together never allow more than the limit; memory holds a bounded number of callers.

What ends in `_at_once` waits for neither disk nor lock, so that an event loop may call it.

Grows on disk with the number of callers; counts of past days are dropped.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from garrison.errors import ConfigError, UnavailableError

logger = logging.getLogger(__name__)

CALLERS_IN_MEMORY = 65_536
FILE_NAME = "budgets.sqlite3"
NO_LIMIT = -1

_SCHEMA_VERSION = 1
_LEASES = 64
_MOST_LEASED = 4_096
_BUSY_SECONDS = 1.0
"""So long a request waits for another program's lock; its client is told to try again then."""
_OPENING_SECONDS = 10.0
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_FRESH_SECONDS = 0.25
"""Near its end, a count is read again after this: other servers may have used rows, or given some back."""
_NEAR_END = 4
_EVER, _DAY = "ever", "day"

Key = tuple[str, str, str]
"""Model, caller, period."""


class _Account:
    """What is known of one caller: rows in the database (leases included), and of those leased here and not yet used."""

    __slots__ = ("idle", "read", "recorded", "unused")

    def __init__(self, recorded: int) -> None:
        self.recorded = recorded
        self.unused = 0
        self.read = time.monotonic()
        self.idle = False

    def left(self, limit: int, least: int = 0) -> int:
        return max(least, limit - self.recorded + self.unused)

    def is_stale(self, limit: int) -> bool:
        return self.left(limit) * _NEAR_END < limit and time.monotonic() - self.read > _FRESH_SECONDS


class BudgetBook:
    """The counts of all models and callers. Safe to use from several threads.

    Args:
        folder: where the database lies; made where it is not there.
        clock: seconds since the epoch.
        callers_in_memory: how many callers' leases are held at once.

    Raises:
        ConfigError: the folder cannot be written, or holds another database.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.time, callers_in_memory: int = CALLERS_IN_MEMORY
    ) -> None:
        self._clock = clock
        self._most = callers_in_memory
        self._accounts: OrderedDict[Key, _Account] = OrderedDict()
        self._lock = threading.Lock()
        self._day = ""
        self._next_day = 0.0
        self._database = _open(folder)
        self._begun = False

    def remaining(self, model: str, caller: str, period: str, limit: int, least: int = 0) -> int:
        """Rows that a caller may still ask; `least` where they are fewer, as they are below 0 for who was charged beyond the limit.

        Raises:
            UnavailableError: another program holds the database for longer than a request waits.
        """
        with self._lock, _no_long_wait():
            key = model, caller, self._period(period)
            account = self._account(key)
            if account.is_stale(limit):
                account.recorded, account.read = self._recorded(key), time.monotonic()
            return account.left(limit, least)

    def remaining_at_once(
        self, model: str, callers: Iterable[str], period: str, limit: int, least: int = 0
    ) -> dict[str, int] | None:
        """As `remaining`, for several callers; None where that takes the disk, or another thread is at it."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            now = self._period_at_once(period)
            if now is None:
                return None
            found = {}
            for caller in callers:
                account = self._accounts.get((model, caller, now))
                if account is None or account.is_stale(limit):
                    return None
                found[caller] = account.left(limit, least)
            return found
        finally:
            self._lock.release()

    def charge_at_once(
        self, model: str, period: str, limit: int, wants: Sequence[tuple[str, int]]
    ) -> list[bool] | None:
        """As `charge`, from what was leased before; None, and nothing is charged, where that takes the disk."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            now = self._period_at_once(period)
            return None if now is None else self._take_leased(model, now, limit, wants)
        finally:
            self._lock.release()

    def charge(self, model: str, period: str, limit: int, wants: Sequence[tuple[str, int]]) -> list[bool]:
        """Charge callers with rows; what is charged is on the disk when this returns.

        Args:
            model: the model's name; its versions share a budget.
            period: "day" or "ever".
            limit: rows a caller may ask in one period.
            wants: caller and rows.

        Returns:
            For each whether it was charged; a caller who has not enough left is not charged at all.

        Raises:
            UnavailableError: another program holds the database for longer than a request waits; nothing may be answered.
            sqlite3.Error: the disk failed; nothing that was asked for may be answered.
        """
        with self._lock, _no_long_wait():
            now = self._period(period)
            try:
                granted = [rows == 0 or self._take((model, caller, now), rows, limit) for caller, rows in wants]
                self._commit()
            except BaseException:
                self._forget_unwritten()
                raise
            return granted

    def give_back_idle(self) -> None:
        """Give back leases of which nothing was used since this was called last, so that other servers may use them."""
        with self._lock:
            leased = [(key, account) for key, account in self._accounts.items() if account.unused]
            try:
                self._give_back([key for key, account in leased if account.idle])
                self._commit()
            except BaseException:
                self._forget_unwritten()
                raise
            for _, account in leased:
                account.idle = True

    def close(self) -> None:
        """Give unused leases back, if the disk allows, and close the database."""
        with self._lock:
            try:
                _wait_at_most(self._database, _OPENING_SECONDS)  # nobody waits for an answer
                self._give_back(list(self._accounts))
                self._commit()
            except sqlite3.Error as error:
                logger.warning("unused budgets could not be given back: %s", error)
            finally:
                self._database.close()

    def _take(self, key: Key, rows: int, limit: int) -> bool:
        account = self._account(key)
        account.idle = False
        if rows <= account.unused and account.recorded - account.unused + rows <= limit:
            account.unused -= rows
            return True
        return self._lease(key, account, rows, limit)

    def _take_leased(self, model: str, period: str, limit: int, wants: Sequence[tuple[str, int]]) -> list[bool] | None:
        """Charge all or none."""
        totals: dict[str, int] = {}
        for caller, rows in wants:
            totals[caller] = totals.get(caller, 0) + rows
        taken = []
        for caller, rows in totals.items():
            if rows:
                account = self._accounts.get((model, caller, period))
                if account is None or rows > account.unused or account.recorded - account.unused + rows > limit:
                    return None
                taken.append((account, rows))
        for account, rows in taken:
            account.unused -= rows
            account.idle = False
        return [True] * len(wants)

    def _lease(self, key: Key, account: _Account, rows: int, limit: int) -> bool:
        self._begin()
        account.recorded, account.read = self._recorded(key), time.monotonic()  # another server may have charged too
        needed, free = rows - account.unused, limit - account.recorded
        if needed > free or account.recorded - account.unused + rows > limit:
            return False
        # Near the end leases become small, so that little lies unused where nobody asks for it.
        lease = min(max(needed, min(limit // _LEASES, _MOST_LEASED, free // _NEAR_END)), free)
        self._add(key, lease)
        account.recorded += lease
        account.unused += lease - rows
        return True

    def _account(self, key: Key) -> _Account:
        account = self._accounts.get(key)
        if account is not None:
            self._accounts.move_to_end(key)
            return account
        if len(self._accounts) >= self._most:
            oldest = [k for k, _ in zip(self._accounts, range(max(1, self._most // 8)), strict=False)]
            began = self._begun
            self._give_back(oldest)
            if not began:
                self._commit()
        account = self._accounts[key] = _Account(self._recorded(key))
        return account

    def _give_back(self, keys: Sequence[Key]) -> None:
        for key in keys:
            if self._accounts[key].unused:
                self._begin()  # may fail, and nothing is forgotten then
            unused = self._accounts.pop(key).unused
            if unused:
                self._database.execute(
                    "UPDATE spent SET rows = rows - ? WHERE model = ? AND caller = ? AND period = ?", (unused, *key)
                )

    def _recorded(self, key: Key) -> int:
        found = self._database.execute(
            "SELECT rows FROM spent WHERE model = ? AND caller = ? AND period = ?", key
        ).fetchone()
        return 0 if found is None else int(found[0])

    def _add(self, key: Key, rows: int) -> None:
        self._database.execute(
            "INSERT INTO spent (model, caller, period, rows) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (model, caller, period) DO UPDATE SET rows = rows + excluded.rows",
            (*key, rows),
        )

    def _begin(self) -> None:
        if not self._begun:
            self._database.execute("BEGIN IMMEDIATE")
            self._begun = True

    def _commit(self) -> None:
        if self._begun:
            self._database.execute("COMMIT")
            self._begun = False

    def _forget_unwritten(self) -> None:
        """After a failed write it is not known which leases the disk holds. Forgetting them all can only cost callers rows."""
        if self._begun:
            self._accounts.clear()
            self._begun = False
            self._database.rollback()

    def _period_at_once(self, period: str) -> str | None:
        if period != _DAY:
            return _EVER
        return self._day if self._day and self._clock() < self._next_day else None

    def _period(self, period: str) -> str:
        if period != _DAY:
            return _EVER
        now = self._clock()
        if not self._day or now >= self._next_day:
            self._day = time.strftime("day %Y-%m-%d", time.gmtime(now))
            self._next_day = (now // 86_400 + 1) * 86_400
            self._database.execute("DELETE FROM spent WHERE period <> ? AND period < ?", (_EVER, self._day))
        return self._day


def default_folder() -> Path:
    """The user's own state folder, where budgets are kept unless another is named."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "state") / "garrison"


@contextmanager
def _no_long_wait() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _BUSY:  # the low byte says what, the rest where
            raise
        logger.warning("another program holds the budgets for longer than %g s", _BUSY_SECONDS)
        raise UnavailableError("the budgets are in use elsewhere just now; try again") from error


def _wait_at_most(database: sqlite3.Connection, seconds: float) -> None:
    database.execute(f"PRAGMA busy_timeout = {round(1000 * seconds)}")


def _open(folder: Path) -> sqlite3.Connection:
    path = folder / FILE_NAME
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        database = sqlite3.connect(path, timeout=_OPENING_SECONDS, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS spent (model TEXT, caller TEXT, period TEXT, rows INTEGER NOT NULL, "
            "PRIMARY KEY (model, caller, period)) WITHOUT ROWID"
        )
        found = int(database.execute("PRAGMA user_version").fetchone()[0])
        if found not in {0, _SCHEMA_VERSION}:
            raise ConfigError(f"{path} is of version {found}, this program knows version {_SCHEMA_VERSION}")
        database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        _wait_at_most(database, _BUSY_SECONDS)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"the budgets cannot be kept in {path}: {error}; choose a folder with server.state or --state"
        ) from error
    return database
