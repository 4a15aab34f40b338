"""Budgets are charged before an answer leaves, survive anything, and never give a row back that was used."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
from pathlib import Path

import httpx
import pytest
from tests.models import images
from tests.serving import Bundles, command, serve

from garrison.errors import ConfigError, UnavailableError
from garrison.protocol.oip_client import encode_request
from garrison.server.budgets import FILE_NAME, BudgetBook
from garrison.server.model_budget import Left, ModelBudget

LIMIT = 1000
NOON = 1_750_000_000.0


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def charge(book: BudgetBook, rows: int, caller: str = "alice", limit: int = LIMIT, period: str = "ever") -> bool:
    return book.charge("m", period, limit, [(caller, rows)])[0]


def left(book: BudgetBook, caller: str = "alice", limit: int = LIMIT, period: str = "ever") -> int:
    return book.remaining("m", caller, period, limit)


def recorded(folder: Path, caller: str = "alice") -> int:
    """What a server that comes after a crash would find."""
    with sqlite3.connect(folder / FILE_NAME) as database:
        found = database.execute("SELECT sum(rows) FROM spent WHERE caller = ?", (caller,)).fetchone()[0]
    database.close()
    return int(found or 0)


def test_rows_are_counted_exactly_until_none_is_left(tmp_path: Path) -> None:
    book = BudgetBook(tmp_path)
    rng, used = random.Random(1), 0
    while used < LIMIT:
        rows = rng.randint(1, 30)
        fits = used + rows <= LIMIT
        assert charge(book, rows) is fits
        used += rows if fits else 0
        assert left(book) == LIMIT - used
        assert recorded(tmp_path) >= used
        if not fits:
            assert charge(book, LIMIT - used)
            used = LIMIT
    assert left(book) == 0
    assert not charge(book, 1)
    assert charge(book, 0)
    book.close()


def test_callers_models_and_periods_do_not_mix(tmp_path: Path) -> None:
    book = BudgetBook(tmp_path)
    assert charge(book, 400)
    assert charge(book, 300, "bob")
    assert book.charge("other", "ever", LIMIT, [("alice", 10)]) == [True]
    assert (left(book), left(book, "bob"), left(book, "carol")) == (600, 700, 1000)
    assert book.remaining("other", "alice", "ever", LIMIT) == 990
    assert left(book, period="day") == 1000
    book.close()


def test_requests_of_one_batch_are_charged_one_after_the_other(tmp_path: Path) -> None:
    book = BudgetBook(tmp_path)
    wants = [("alice", 600), ("bob", 600), ("alice", 600), ("alice", 400), ("alice", 1)]
    assert book.charge("m", "ever", LIMIT, wants) == [True, True, False, True, False]
    book.close()


def test_a_crash_costs_the_caller_a_lease_at_most_and_gives_nothing_back(tmp_path: Path) -> None:
    for attempt in range(5):
        book = BudgetBook(tmp_path)
        before = left(book)
        assert charge(book, 1)
        assert charge(book, 20)
        assert left(book) == before - 21
        del book  # no close: as after a crash, what is in memory is gone
        after = left(BudgetBook(tmp_path))
        assert before - 21 - LIMIT // 64 - 1 <= after <= before - 21, attempt


def test_a_graceful_stop_gives_unused_leases_back(tmp_path: Path) -> None:
    book = BudgetBook(tmp_path)
    assert charge(book, 1)
    assert recorded(tmp_path) > 1
    book.close()
    assert recorded(tmp_path) == 1


def test_a_day_ends_at_midnight_utc(tmp_path: Path) -> None:
    clock = Clock()
    book = BudgetBook(tmp_path, clock)
    assert charge(book, LIMIT, period="day")
    assert not charge(book, 1, period="day")
    assert charge(book, 5)
    clock.now = (NOON // 86_400 + 1) * 86_400 - 1
    assert not charge(book, 1, period="day")
    clock.now += 1
    assert left(book, period="day") == LIMIT
    assert charge(book, 7, period="day")
    assert left(book) == LIMIT - 5
    book.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as database:
        periods = {row[0] for row in database.execute("SELECT period FROM spent")}
    database.close()
    assert periods == {"ever", time.strftime("day %Y-%m-%d", time.gmtime(clock.now))}


def test_a_smaller_limit_counts_at_once(tmp_path: Path) -> None:
    """Two versions of a model share the count, and each has its own limit."""
    book = BudgetBook(tmp_path)
    assert charge(book, 90)
    assert left(book, limit=100) == 10
    assert not charge(book, 11, limit=100)
    assert charge(book, 10, limit=100)
    assert not charge(book, 1, limit=100)
    assert charge(book, 1)
    book.close()


def test_memory_is_bounded_and_no_row_is_lost_by_it(tmp_path: Path) -> None:
    book = BudgetBook(tmp_path, callers_in_memory=16)
    for _ in range(3):
        for k in range(100):
            assert charge(book, 1, f"caller {k}")
            assert len(book._accounts) <= 16
    assert {left(book, f"caller {k}") for k in range(100)} == {LIMIT - 3}
    book.close()
    assert {recorded(tmp_path, f"caller {k}") for k in range(100)} == {3}


def test_memory_is_bounded_within_one_batch_too(tmp_path: Path) -> None:
    book = BudgetBook(tmp_path, callers_in_memory=4)
    wants = [(f"caller {k % 20}", 2) for k in range(100)]
    assert all(book.charge("m", "ever", LIMIT, wants))
    book.close()
    assert {recorded(tmp_path, f"caller {k}") for k in range(20)} == {10}


def _spend(folder: str, granted: multiprocessing.Queue[int]) -> None:
    book = BudgetBook(Path(folder))
    mine = 0
    for _ in range(200):
        mine += 3 if book.charge("m", "ever", LIMIT, [("alice", 3)])[0] else 0
    granted.put(mine)
    book.close()


def test_two_servers_share_one_count(tmp_path: Path) -> None:
    BudgetBook(tmp_path).close()
    context = multiprocessing.get_context("spawn")
    granted: multiprocessing.Queue[int] = context.Queue()
    workers = [context.Process(target=_spend, args=(str(tmp_path), granted)) for _ in range(2)]
    for worker in workers:
        worker.start()
    used = sum(granted.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert LIMIT - 2 * (LIMIT // 64) - 6 <= used <= LIMIT
    assert recorded(tmp_path) == used


def test_threads_share_one_count(tmp_path: Path) -> None:
    book, granted = BudgetBook(tmp_path), []

    def spend() -> None:
        granted.append(sum(charge(book, 1) for _ in range(400)))

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == LIMIT
    book.close()


def test_when_the_disk_fails_nothing_is_granted_and_nothing_is_given_back(tmp_path: Path) -> None:
    book = BudgetBook(tmp_path)
    assert charge(book, 100)
    with sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None) as other:
        other.execute("ALTER TABLE spent RENAME TO gone")
        with pytest.raises(sqlite3.Error):
            charge(book, 500)
        other.execute("ALTER TABLE gone RENAME TO spent")
    other.close()
    assert LIMIT - 100 - LIMIT // 64 <= left(book) <= LIMIT - 100
    assert charge(book, 500)
    book.close()


def test_a_place_that_cannot_be_used_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="--state"):
        BudgetBook(tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE_NAME).write_bytes(b"this is no database" * 100)
    with pytest.raises(ConfigError, match="cannot be kept"):
        BudgetBook(tmp_path / "other")
    newer = tmp_path / "newer"
    BudgetBook(newer).close()
    with sqlite3.connect(newer / FILE_NAME) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(ConfigError, match="version 99"):
        BudgetBook(newer)


def test_without_a_budget_nobody_is_counted(tmp_path: Path) -> None:
    free = ModelBudget("m", 0, "", None)
    assert free.left("alice") == Left(-1, -1)
    assert free.charge([("alice", 10**9)]) == [True]


# --- over HTTP -------------------------------------------------------------------------------------------------------


def test_the_budget_holds_over_http_and_over_concurrent_requests(bundles: Bundles, tmp_path: Path) -> None:
    async def many(url: str) -> list[int]:
        body, length = encode_request({"image": images(7)})
        headers = {"inference-header-content-length": str(length)}
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            answers = await asyncio.gather(
                *(client.post("/v2/models/metered/infer", content=body, headers=headers) for _ in range(40))
            )
        assert {a.json()["code"] for a in answers if a.status_code != 200} <= {"request.budget_exhausted"}
        return [a.status_code for a in answers]

    with serve(bundles, "metered", state=tmp_path) as running:
        codes = asyncio.run(many(running.url))
        assert codes.count(200) == 100 // 7
        assert codes.count(429) == 40 - 100 // 7
        assert running.infer(images(2), "/v2/models/metered/infer").status_code == 200
        assert running.infer(images(1), "/v2/models/metered/infer").status_code == 429
    assert recorded(tmp_path, "ip:127.0.0.1") == 100


def test_a_host_may_tighten_the_budget(bundles: Bundles, tmp_path: Path) -> None:
    settings = tmp_path / "garrison.toml"
    settings.write_text("[guard.budget]\nrows = 10\n")
    with command(bundles, "metered", tmp_path, "--config", str(settings)) as (_, ready):
        url = ready["url"]
        assert ask(url, 10).status_code == 200
        assert ask(url, 1).status_code == 429


def ask(url: str, rows: int) -> httpx.Response:
    body, length = encode_request({"image": images(rows)})
    headers = {"inference-header-content-length": str(length)}
    return httpx.post(f"{url}/v2/models/metered/infer", content=body, headers=headers)


def test_killing_the_server_gives_no_row_back(bundles: Bundles, tmp_path: Path) -> None:
    used = 0
    for rows in (30, 20, 25):
        with command(bundles, "metered", tmp_path) as (server, ready):
            answered = ask(ready["url"], rows)
            assert answered.status_code == 200, answered.text
            used += rows
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
        assert used <= recorded(tmp_path / "state", "ip:127.0.0.1") <= used + 3
    with command(bundles, "metered", tmp_path) as (_, ready):
        url = ready["url"]
        assert ask(url, 100 - used + 1).status_code == 429
        assert ask(url, 100 - used - 3).status_code == 200


def test_rows_of_a_lease_are_not_lost_when_the_store_fails_in_the_same_batch(tmp_path: Path) -> None:
    """Nobody of the batch is answered, so nobody has paid."""
    book, other = BudgetBook(tmp_path), sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    assert book.charge("m", "ever", 6_400, [("alice", 90)]) == [True]  # of a lease of 100
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UnavailableError):
        book.charge("m", "ever", 6_400, [("alice", 5), ("alice", 0), ("alice", 20)])
    other.execute("ROLLBACK")
    other.close()
    assert book.remaining("m", "alice", "ever", 6_400) == 6_400 - 90
    book.close()
    again = BudgetBook(tmp_path)
    assert again.remaining("m", "alice", "ever", 6_400) == 6_400 - 90
    again.close()
