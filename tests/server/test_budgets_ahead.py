"""Leases that are filled up before a request needs them."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest
from tests.stalls import wait_until

from garrison.errors import UnavailableError
from garrison.server.budgets import FILE_NAME, BudgetBook
from garrison.server.stores import sqlite

LIMIT = 6_400
LEASE = LIMIT // 64


def at_once(book: BudgetBook, rows: int) -> list[bool] | None:
    return book.charge_at_once("m", "ever", LIMIT, [("alice", rows)])


def recorded(folder: Path) -> int:
    with sqlite3.connect(folder / FILE_NAME) as database:
        found = database.execute("SELECT sum(rows) FROM spent").fetchone()[0]
    database.close()
    return int(found or 0)


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BudgetBook:
    """Of one caller, who has used one row of a lease."""
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 4.0)  # who waits for the store is seen to wait
    found = BudgetBook(tmp_path)
    assert found.charge("m", "ever", LIMIT, [("alice", 1)]) == [True]
    return found


def test_who_has_used_half_of_a_lease_gets_a_whole_one_and_never_more(book: BudgetBook, tmp_path: Path) -> None:
    book.lease_ahead()
    assert recorded(tmp_path) == LEASE  # control: more than half is there
    assert at_once(book, LEASE // 2) == [True]
    assert at_once(book, LEASE) is None  # control: this takes the store
    book.lease_ahead()
    used = 1 + LEASE // 2
    assert recorded(tmp_path) == used + LEASE
    book.lease_ahead()
    assert recorded(tmp_path) == used + LEASE
    assert at_once(book, LEASE) == [True]
    assert book.remaining("m", "alice", "ever", LIMIT) == LIMIT - used - LEASE
    book.close()
    assert recorded(tmp_path) == used + LEASE


def test_near_its_end_a_budget_is_not_leased_ahead(book: BudgetBook, tmp_path: Path) -> None:
    """Other servers may need what is left."""
    for rows in (LIMIT * 4 // 5, 1):
        assert book.charge("m", "ever", LIMIT, [("alice", rows)]) == [True]
    before = recorded(tmp_path)
    assert at_once(book, LEASE * 3 // 5) == [True]
    book.lease_ahead()
    assert recorded(tmp_path) == before
    book.close()


def test_nobody_waits_for_a_lease_that_is_taken_ahead(book: BudgetBook, tmp_path: Path) -> None:
    assert at_once(book, LEASE // 2) == [True]
    with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        failed: list[BaseException] = []

        def ahead() -> None:
            try:
                book.lease_ahead()
            except UnavailableError as error:
                failed.append(error)

        waiting = threading.Thread(target=ahead)
        waiting.start()
        time.sleep(0.1)
        assert waiting.is_alive()  # control: it is at the store
        assert at_once(book, 5) == [True]
        assert book.remaining_at_once("m", ("alice",), "ever", LIMIT) == {"alice": LIMIT - 6 - LEASE // 2}
        assert waiting.is_alive()  # it still waits, and nobody has waited for it
        waiting.join()
        other.execute("ROLLBACK")
    other.close()
    assert len(failed) == 1
    assert at_once(book, 5) == [True]  # what was leased before is not lost
    assert book.remaining("m", "alice", "ever", LIMIT) == LIMIT - 11 - LEASE // 2
    book.close()
    assert recorded(tmp_path) == 11 + LEASE // 2


def test_the_thread_leases_ahead_and_ends_with_the_book(book: BudgetBook, tmp_path: Path) -> None:
    others = set(threading.enumerate())
    book.keep_ahead()
    (thread,) = (new for new in set(threading.enumerate()) - others if new.name == "garrison-budgets")
    used = 1
    for _ in range(5):
        wait_until(lambda: at_once(book, LEASE // 2 + 5) == [True])  # control: without the thread the second finds none
        used += LEASE // 2 + 5
        wait_until(lambda used=used: recorded(tmp_path) == used + LEASE)  # type: ignore[misc]
    book.close()
    assert recorded(tmp_path) == used
    assert not thread.is_alive()
