"""Rows that callers have used: durable, charged before an answer leaves.

The counts lie in a store (`garrison.server.stores`): SQLite, or a database that several machines share. To keep the disk and the network off the path of most
requests, rows are taken from a caller's budget in blocks (leases) and used up in memory; the next lease is taken by a thread of its own when half of one is
used. Invariants: what stands in the store is never less
than what was used, so a crash can cost a caller the rest of a lease (at most 1/64 of its budget) and can never give rows back;
a graceful stop gives unused leases back, and so does one that nobody has used for a while; several servers may share one store, and
together never allow more than the limit; memory holds a bounded number of callers.

What ends in `_at_once` waits for neither disk, network nor lock, so that an event loop may call it.

The store grows with the number of callers; counts of past days are dropped.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from garrison.errors import UnavailableError
from garrison.server.stores.base import EVER, NEAR_END, Counts, Key, Store
from garrison.server.stores.sqlite import FILE_NAME, SqliteStore

__all__ = ["CALLERS_IN_MEMORY", "FILE_NAME", "NO_LIMIT", "BudgetBook", "default_folder"]

logger = logging.getLogger(__name__)

CALLERS_IN_MEMORY = 65_536
NO_LIMIT = -1

_LEASES = 64
_MOST_LEASED = 4_096
_FRESH_SECONDS = 0.25
"""Near its end, a count is read again after this: other servers may have used rows, or given some back."""
_DAY = "day"

Wants = Sequence[tuple[str, int]]
"""Callers and rows."""
Charge = tuple[str, str, int, Wants]
"""Model, period, limit, and who wants what; a count (model, caller) may stand in one of several charges only once."""


class _Account:
    """What is known of one caller: rows in the store (leases included), and of those leased here and not yet used."""

    __slots__ = ("idle", "read", "recorded", "unused")

    def __init__(self, recorded: int) -> None:
        self.recorded = recorded
        self.unused = 0
        self.read = time.monotonic()
        self.idle = False

    def left(self, limit: int, least: int = 0) -> int:
        left = limit - self.recorded + self.unused
        return left if left > least else least

    def is_near_end(self, limit: int) -> bool:
        return self.left(limit) * NEAR_END < limit

    @property
    def is_old(self) -> bool:
        """Whether it was read too long ago, for one that is near its end."""
        return time.monotonic() - self.read > _FRESH_SECONDS


_Taken = tuple[Key, _Account, int, float, int]
"""Whose, what is known of it, its limit, of how many rows more are leased where fewer are left, and the rows that are taken."""


def _block(limit: int) -> int:
    return min(limit // _LEASES, _MOST_LEASED)


class BudgetBook:
    """The counts of all models and callers. Safe to use from several threads.

    Args:
        store: where the counts lie, closed with the book; or a folder, for SQLite.
        clock: seconds since the epoch.
        callers_in_memory: how many callers' leases are held at once.

    Raises:
        ConfigError: the folder cannot be written, or holds another database.
    """

    def __init__(
        self, store: Store | Path, clock: Callable[[], float] = time.time, callers_in_memory: int = CALLERS_IN_MEMORY
    ) -> None:
        self._clock = clock
        self._most = callers_in_memory
        self._accounts: OrderedDict[Key, _Account] = OrderedDict()
        self._lock = threading.Lock()
        self._store_lock = threading.Lock()  # taken before the other, and held while the store is waited for
        self._low: dict[Key, int] = {}
        self._someone_low = threading.Event()
        self._ahead: threading.Thread | None = None
        self._closed = False
        self._day = ""
        self._next_day = 0.0
        self._store = SqliteStore(store) if isinstance(store, Path) else store

    @property
    def words(self) -> str:
        """Where the counts lie, without a password."""
        return self._store.words

    def remaining(self, model: str, caller: str, period: str, limit: int, least: int = 0) -> int:
        """Rows that a caller may still ask; `least` where they are fewer, as they are below 0 for who was charged beyond the limit.

        Raises:
            UnavailableError: another program holds the store for longer than a request waits, or it cannot be reached.
        """
        with self._store_lock, self._lock:
            key = model, caller, self._period(period)
            self._make_room()
            with self._store.transaction() as counts:
                account = self._account(counts, key)
                if account.is_near_end(limit) and account.is_old:
                    account.recorded, account.read = counts.read(key), time.monotonic()
            return account.left(limit, least)

    def remaining_at_once(
        self, model: str, callers: Iterable[str], period: str, limit: int, least: int = 0
    ) -> dict[str, int] | None:
        """As `remaining`, for several callers; None where that takes the store, or another thread is at it."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            now = self._period_at_once(period)
            if now is None:
                return None
            found = {}
            for caller in callers:
                account = self._accounts.get((model, caller, now))
                if account is None:
                    return None
                left = found[caller] = account.left(limit, least)
                if left * NEAR_END < limit and account.is_old:
                    return None
            return found
        finally:
            self._lock.release()

    def remaining_one_at_once(self, model: str, caller: str, period: str, limit: int) -> int | None:
        """As `remaining_at_once`, of a lone caller, in less time."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            now = self._period_at_once(period)
            account = None if now is None else self._accounts.get((model, caller, now))
            if account is None:
                return None
            left = account.left(limit)
            return None if left * NEAR_END < limit and account.is_old else left
        finally:
            self._lock.release()

    def charge_at_once(self, model: str, period: str, limit: int, wants: Wants) -> list[bool] | None:
        """As `charge`, from what was leased before; None, and nothing is charged, where that takes the store."""
        return [True] * len(wants) if self.charge_all_at_once([(model, period, limit, wants)]) else None

    def charge_one_at_once(self, model: str, period: str, limit: int, caller: str, rows: int) -> bool:
        """As `charge_all_at_once`, for a lone request, in half of the time: from a lease that need not be filled up after it."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            now = self._period_at_once(period)
            account = None if now is None else self._accounts.get((model, caller, now))
            if account is None or account.recorded - account.unused + rows > limit:
                return False
            if account.unused - rows < _block(limit) / 2:  # also where the lease does not cover them
                return False
            account.unused -= rows
            account.idle = False
            return True
        finally:
            self._lock.release()

    def charge_all_at_once(self, charges: Sequence[Charge]) -> bool:
        """Several charges (model, period, limit, wants) at once, from what was leased before; False, and nothing is charged, where that takes the store."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            taken: list[_Taken] = []
            for model, period, limit, wants in charges:
                now = self._period_at_once(period)
                if now is None or not self._find_leased(model, now, limit, wants, taken):
                    return False
            for key, account, limit, low, rows in taken:
                account.unused -= rows
                account.idle = False
                if account.unused < low and not account.is_near_end(limit) and key not in self._low:
                    self._low[key] = limit
                    self._someone_low.set()
            return True
        finally:
            self._lock.release()

    def charge(self, model: str, period: str, limit: int, wants: Wants) -> list[bool]:
        """Charge callers with rows; what is charged is on the disk when this returns.

        Args:
            model: the model's name; its versions share a budget.
            period: "day" or "ever".
            limit: rows a caller may ask in one period.
            wants: caller and rows.

        Returns:
            For each whether it was charged; a caller who has not enough left is not charged at all.

        Raises:
            UnavailableError: the store cannot be used for longer than a request waits; nothing may be answered.
            sqlite3.Error: the disk failed; nothing that was asked for may be answered.
        """
        with self._store_lock, self._lock:
            now = self._period(period)
            self._make_room()
            granted = [True] * len(wants)
            touched: list[Key] = []
            taken: list[tuple[_Account, int]] = []
            try:
                with self._store.transaction() as counts:
                    for k in sorted(range(len(wants)), key=lambda k: wants[k][0]):  # see `Counts`
                        caller, rows = wants[k]
                        granted[k] = rows == 0 or self._take(counts, (model, caller, now), rows, limit, touched)
                        if granted[k] and rows:
                            taken.append((self._accounts[model, caller, now], rows))
            except BaseException:
                for account, rows in taken:  # of what was leased before: nobody is answered
                    account.unused += rows
                self._forget(touched)
                raise
            return granted

    def lease_ahead(self) -> None:
        """Fill up the leases of callers who have used half of one, so that their requests need not wait for the store. Nobody waits for this.

        Raises:
            UnavailableError, sqlite3.Error: as `charge`; who asks next leases anew.
        """
        with self._store_lock:  # so no account can go meanwhile
            with self._lock:
                low, self._low = self._low, {}
                known = [
                    (key, limit, self._accounts[key]) for key, limit in sorted(low.items()) if key in self._accounts
                ]
            with self._store.transaction() as counts:
                found = [(a, counts.lease(key, 0, max(0, _block(limit) - a.unused), limit)) for key, limit, a in known]
            with self._lock:
                for account, lease in found:
                    account.recorded, account.read = lease.recorded, time.monotonic()
                    account.unused += lease.taken

    def keep_ahead(self) -> None:
        """Call `lease_ahead` from now on wherever somebody needs it, on a thread that ends with the book."""
        self._ahead = threading.Thread(target=self._run_ahead, name="garrison-budgets", daemon=True)
        self._ahead.start()

    def _run_ahead(self) -> None:
        while self._someone_low.wait() and not self._closed:
            self._someone_low.clear()
            try:
                self.lease_ahead()
            except (sqlite3.Error, UnavailableError) as error:
                logger.warning("budgets could not be leased ahead: %s", error)
                time.sleep(_FRESH_SECONDS)

    def give_back_idle(self) -> None:
        """Give back leases of which nothing was used since this was called last, so that other servers may use them."""
        with self._store_lock, self._lock:
            leased = [(key, account) for key, account in self._accounts.items() if account.unused]
            self._give_back([key for key, account in leased if account.idle])
            for _, account in leased:
                account.idle = True

    def close(self) -> None:
        """Give unused leases back, if the store allows, and close it."""
        self._closed = True
        self._someone_low.set()
        if self._ahead is not None:
            self._ahead.join()
        with self._store_lock, self._lock:
            try:
                self._give_back(list(self._accounts), patient=True)
            except (sqlite3.Error, UnavailableError) as error:
                logger.warning("unused budgets could not be given back: %s", error)
            finally:
                self._store.close()

    def _take(self, counts: Counts, key: Key, rows: int, limit: int, touched: list[Key]) -> bool:
        account = self._account(counts, key)
        account.idle = False
        if rows > account.unused or account.recorded - account.unused + rows > limit:
            if not self._store.rolls_back:
                touched.append(key)
            found = counts.lease(key, rows - account.unused, _block(limit), limit)
            touched.append(key)
            account.recorded, account.read = found.recorded, time.monotonic()  # another server may have charged too
            account.unused += found.taken
            if rows > account.unused or account.recorded - account.unused + rows > limit:
                return False
        account.unused -= rows
        return True

    def _find_leased(self, model: str, period: str, limit: int, wants: Wants, taken: list[_Taken]) -> bool:
        """Whether leases cover these rows; what is to be taken of them is added to `taken`."""
        totals: dict[str, int] = {}
        for caller, rows in wants:
            totals[caller] = totals[caller] + rows if caller in totals else rows
        accounts, low = self._accounts, _block(limit) / 2
        for caller, rows in totals.items():
            if rows:
                key = model, caller, period
                account = accounts.get(key)
                if account is None or rows > account.unused or account.recorded - account.unused + rows > limit:
                    return False
                taken.append((key, account, limit, low, rows))
        return True

    def _account(self, counts: Counts, key: Key) -> _Account:
        account = self._accounts.get(key)
        if account is not None:
            self._accounts.move_to_end(key)
            return account
        account = self._accounts[key] = _Account(counts.read(key))
        return account

    def _make_room(self) -> None:
        if len(self._accounts) >= self._most:
            self._give_back([k for k, _ in zip(self._accounts, range(max(1, self._most // 8)), strict=False)])

    def _give_back(self, keys: Sequence[Key], *, patient: bool = False) -> None:
        """Forget callers, and give back what they have not used."""
        given = []
        try:
            with self._store.transaction(patient=patient) as counts:
                for key in sorted(keys):
                    unused = self._accounts[key].unused
                    if unused:
                        given.append(key)
                        counts.give_back(key, unused)
        except BaseException as error:
            if not (self._store.rolls_back and isinstance(error, UnavailableError)):
                self._forget(given)  # it is not known what the store holds; to forget can only cost callers rows
            raise
        self._forget(keys)

    def _forget(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._accounts.pop(key, None)
            self._low.pop(key, None)

    def _period_at_once(self, period: str) -> str | None:
        if period != _DAY:
            return EVER
        return self._day if self._day and self._clock() < self._next_day else None

    def _period(self, period: str) -> str:
        if period != _DAY:
            return EVER
        now = self._clock()
        if not self._day or now >= self._next_day:
            self._day = time.strftime("day %Y-%m-%d", time.gmtime(now))
            self._next_day = (now // 86_400 + 1) * 86_400
            self._store.forget(self._day)
        return self._day


def default_folder() -> Path:
    """The user's own state folder, where budgets are kept unless another is named."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "state") / "garrison"
