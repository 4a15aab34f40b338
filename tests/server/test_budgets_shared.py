"""Budgets over several servers at one database, and from an event loop that waits for nothing."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest
from tests.serving import Bundles, serve
from tests.stalls import PATIENT_SECONDS

from garrison.errors import UnavailableError
from garrison.server.budgets import _FRESH_SECONDS, FILE_NAME, BudgetBook
from garrison.server.stores import sqlite

LIMIT = 6_400
LEASE = LIMIT // 64
WANTS = [("alice", 1)]


def charge(book: BudgetBook, rows: int = 1, limit: int = LIMIT) -> bool:
    return book.charge("m", "ever", limit, [("alice", rows)])[0]


def at_once(book: BudgetBook, rows: int = 1, caller: str = "alice", period: str = "ever") -> list[bool] | None:
    return book.charge_at_once("m", period, LIMIT, [(caller, rows)])


def test_what_was_leased_is_charged_at_once_and_all_or_none(tmp_path: Path) -> None:
    book = BudgetBook(tmp_path)
    assert book.remaining_at_once("m", ("alice",), "ever", LIMIT) is None  # not known yet: takes the disk
    assert at_once(book) is None
    assert charge(book)
    assert book.remaining_at_once("m", ("alice",), "ever", LIMIT) == {"alice": LIMIT - 1}
    assert at_once(book, LEASE - 2) == [True]
    assert at_once(book, 2) is None
    assert book.charge_at_once("m", "ever", LIMIT, [("alice", 1), ("alice", 1)]) is None
    assert book.charge_at_once("m", "ever", LIMIT, [("alice", 1), ("bob", 0)]) == [True, True]
    assert book.remaining("m", "alice", "ever", LIMIT) == LIMIT - LEASE
    book.close()
    assert BudgetBook(tmp_path).remaining("m", "alice", "ever", LIMIT) == LIMIT - LEASE


def test_a_lone_request_is_charged_as_several_are(tmp_path: Path) -> None:
    now = [1_750_000_000.0]
    book = BudgetBook(tmp_path, lambda: now[0])

    def one(rows: int, limit: int = LIMIT, period: str = "ever") -> bool:
        return book.charge_one_at_once("m", period, limit, "alice", rows)

    assert book.remaining_one_at_once("m", "alice", "ever", LIMIT) is None  # not known yet: takes the disk
    assert not one(1)
    assert charge(book)
    assert book.remaining_one_at_once("m", "alice", "ever", LIMIT) == LIMIT - 1
    assert not one(LEASE // 2)  # what is left must be filled up: not in this way
    assert not one(1, limit=1)  # a smaller limit
    assert one(LEASE // 2 - 1)
    assert not one(1)
    assert at_once(book, LEASE // 2) == [True]  # control: there are so many
    assert not one(1)  # and none any more
    assert at_once(book) is None
    assert book.remaining("m", "alice", "ever", LIMIT) == LIMIT - LEASE
    assert book.charge("m", "day", LIMIT, WANTS) == [True]
    assert one(1, period="day")
    now[0] += 86_400
    assert not one(1, period="day")
    assert book.remaining_one_at_once("m", "alice", "day", LIMIT) is None
    book.close()


def test_near_its_end_a_lone_count_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("garrison.server.budgets._FRESH_SECONDS", PATIENT_SECONDS)
    book = BudgetBook(tmp_path)
    assert charge(book, LIMIT - 2)
    assert book.remaining_one_at_once("m", "alice", "ever", LIMIT) == 2
    monkeypatch.setattr("garrison.server.budgets._FRESH_SECONDS", -1.0)
    assert book.remaining_one_at_once("m", "alice", "ever", LIMIT) is None
    book.close()


def test_a_smaller_limit_and_another_day_are_not_charged_at_once(tmp_path: Path) -> None:
    now = [1_750_000_000.0]
    book = BudgetBook(tmp_path, lambda: now[0])
    assert charge(book, 90)
    assert book.charge_at_once("m", "ever", 90, WANTS) is None
    assert at_once(book, period="day") is None
    assert book.charge("m", "day", LIMIT, WANTS) == [True]
    assert at_once(book, period="day") == [True]
    now[0] += 86_400
    assert at_once(book, period="day") is None
    assert book.remaining_at_once("m", ("alice",), "day", LIMIT) is None
    book.close()


def test_a_lock_held_elsewhere_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", PATIENT_SECONDS)
    book = BudgetBook(tmp_path)
    assert charge(book)
    with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = threading.Thread(target=charge, args=(book, LEASE))
        waiting.start()
        time.sleep(0.1)
        assert waiting.is_alive()  # control: who may wait does
        start = time.monotonic()
        assert at_once(book) is None
        assert book.remaining_at_once("m", ("alice",), "ever", LIMIT) is None
        assert time.monotonic() - start < PATIENT_SECONDS / 2
        other.execute("ROLLBACK")
    other.close()
    waiting.join()
    assert book.remaining("m", "alice", "ever", LIMIT) == LIMIT - LEASE - 1
    book.close()


@pytest.mark.parametrize("limit", [7, 100, LIMIT])
def test_two_servers_together_allow_the_limit_and_nothing_more(tmp_path: Path, limit: int) -> None:
    books = [BudgetBook(tmp_path) for _ in range(2)]
    used = 0
    for k in range(limit + 50):
        used += charge(books[k % 2], 1, limit)
    for _ in range(3):
        for book in books:
            book.give_back_idle()
    for _ in range(200):
        used += charge(books[0], 1, limit)
    assert used == limit
    assert not charge(books[1], 1, limit)
    for book in books:
        book.close()


def test_a_lease_that_nobody_uses_comes_back_and_one_in_use_does_not(tmp_path: Path) -> None:
    one, two = BudgetBook(tmp_path), BudgetBook(tmp_path)
    assert charge(one)
    one.give_back_idle()
    assert charge(one)  # used since: it stays
    one.give_back_idle()
    assert at_once(one) == [True]
    for _ in range(2):
        one.give_back_idle()
    assert at_once(one) is None
    assert two.remaining("m", "alice", "ever", LIMIT) == LIMIT - 3
    for book in (one, two):
        book.close()


def test_near_the_end_a_count_is_read_again(tmp_path: Path) -> None:
    """Else a server that once saw a budget used up would refuse for ever, though another gave rows back."""
    one, two = BudgetBook(tmp_path), BudgetBook(tmp_path)
    assert charge(one, LIMIT - 10)
    assert charge(one)
    assert two.remaining("m", "alice", "ever", LIMIT) < 10
    for _ in range(2):
        one.give_back_idle()
    time.sleep(_FRESH_SECONDS + 0.05)
    assert two.remaining_at_once("m", ("alice",), "ever", LIMIT) is None
    assert two.remaining("m", "alice", "ever", LIMIT) == 9
    for book in (one, two):
        book.close()


def test_a_request_waits_for_another_program_one_second_at_most(tmp_path: Path) -> None:
    book = BudgetBook(tmp_path)
    assert charge(book)
    book.give_back_idle()  # now it counts as idle
    with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError):
            book.give_back_idle()
        start = time.monotonic()
        with pytest.raises(UnavailableError, match="try again"):
            charge(book, LEASE)
        assert 0.8 < time.monotonic() - start < 8  # who opens or ends a book waits for ten
        other.execute("ROLLBACK")
    other.close()
    assert at_once(book) == [True]  # nothing that was leased is lost by it
    assert charge(book, LEASE)
    assert book.remaining("m", "alice", "ever", LIMIT) == LIMIT - LEASE - 2
    book.close()


def test_a_client_is_told_to_try_again_while_another_program_holds_the_budgets(
    bundles: Bundles, tmp_path: Path
) -> None:
    with serve(bundles, "metered", state=tmp_path) as running:
        with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            response = running.infer(path="/v2/models/metered/infer")
            other.execute("ROLLBACK")
        other.close()
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert running.infer(path="/v2/models/metered/infer").status_code == 200  # control


def test_a_server_ends_although_another_program_holds_the_budgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite, "_OPENING_SECONDS", 0.1)
    book = BudgetBook(tmp_path)
    assert charge(book)
    with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        book.close()
        other.execute("ROLLBACK")
    other.close()
    assert "could not be given back" in caplog.text
