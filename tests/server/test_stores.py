"""Every store keeps the same contract, against its real server: counts are exact, durable and never read as less than they are."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.server.databases import Database, postgres, redis_or_valkey
from tests.stalls import PATIENT_SECONDS

from garrison.errors import ConfigError, GarrisonError, UnavailableError
from garrison.server.budgets import BudgetBook
from garrison.server.stores import STORES, in_words, open_store, scheme_of, sqlite
from garrison.server.stores.base import DOWN_SECONDS, MOST_SECONDS, Lease, Store, lease_size
from garrison.server.stores.sqlite import FILE_NAME, SqliteStore

ALICE, BOB = ("m", "alice", "ever"), ("m", "bob", "ever")
HERE = {"sqlite": "", "postgres": "postgresql", "redis": "redis"}


@dataclass
class Opened:
    """A kind of store, and how to open one more connection to it."""

    kind: str
    open: Callable[[], Store]
    database: Database | None


@pytest.fixture(
    scope="module",
    params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow), pytest.param("redis", marks=pytest.mark.slow)],
)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    if request.param == "sqlite":
        folder = tmp_path_factory.mktemp("store")
        yield Opened("sqlite", lambda: open_store("", folder), None)
        return
    with postgres() if request.param == "postgres" else redis_or_valkey() as database:
        yield Opened(request.param, lambda: open_store(database.url, Path()), database)


@pytest.fixture
def store(opened: Opened) -> Iterator[Store]:
    found = opened.open()
    yield found
    found.close()


_number = iter(range(10**9))


def fresh(period: str = "ever") -> tuple[str, str, str]:
    return "m", f"caller-{next(_number)}", period


def test_all_stores_are_here() -> None:
    kinds = {target.rpartition(".")[2].partition(":")[0] for target in STORES.values()}
    assert kinds | {"sqlite"} == set(HERE), "a new store belongs into the fixture"


def test_leases_are_counted_and_end_at_the_limit(store: Store) -> None:
    key = fresh()
    with store.transaction() as counts:
        assert counts.read(key) == 0
        assert counts.lease(key, 3, 20, 100) == Lease(20, 20)
        assert counts.lease(key, 50, 20, 100) == Lease(70, 50)
        assert counts.lease(key, 1, 20, 100) == Lease(77, 7)  # a quarter of the rest
        assert counts.lease(key, 24, 20, 100) == Lease(77, 0)
        assert counts.lease(key, 23, 20, 100) == Lease(100, 23)
        assert counts.lease(key, 1, 20, 100) == Lease(100, 0)
    with store.transaction() as counts:
        assert counts.read(key) == 100
        counts.give_back(key, 30)
        assert counts.read(key) == 70
        assert counts.lease(key, 1, 20, 2**62).taken == 20


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_a_lease_has_the_size_that_all_agree_on(store: Store, limit: int) -> None:
    key = fresh()
    recorded = 0
    with store.transaction() as counts:
        while recorded < limit:
            expected = lease_size(1, 64, limit - recorded)
            assert counts.lease(key, 1, 64, limit) == Lease(recorded + expected, expected)
            recorded += expected
        assert counts.lease(key, 1, 64, limit).taken == 0


def test_counts_are_told_apart(store: Store) -> None:
    """A name that looks like two must not share a count with another."""
    keys = [
        ("m", "a:b", "c"),
        ("m", "a", "b:c"),
        ("m:a", "b", "c"),
        ('m","a', "b", "c"),
        ("m", "a'b", "c"),
        ("M", "a:b", "c"),
        ("m", "oidc:é", "c"),
    ]
    with store.transaction() as counts:
        for k, key in enumerate(sorted(keys)):
            counts.lease(key, k + 1, 0, 1000)
        assert [counts.read(key) for key in sorted(keys)] == list(range(1, len(keys) + 1))


def test_another_connection_sees_what_was_leased(opened: Opened, store: Store) -> None:
    key, other = fresh(), opened.open()
    with store.transaction() as counts:
        counts.lease(key, 5, 0, 10)
    with other.transaction() as counts:
        assert counts.read(key) == 5
        assert counts.lease(key, 6, 0, 10) == Lease(5, 0)
    other.close()


def test_past_days_are_forgotten_and_ever_is_not(opened: Opened, store: Store) -> None:
    old, today, ever = (("m", "dora", period) for period in ("day 2025-06-15", "day 2025-06-16", "ever"))
    with store.transaction() as counts:
        for key in (old, today, ever):
            counts.lease(key, 5, 0, 10)
    store.forget("day 2025-06-16")
    with store.transaction() as counts:
        assert counts.read(old) == (5 if opened.kind == "redis" else 0)  # there they end by themselves
        assert (counts.read(today), counts.read(ever)) == (5, 5)


def test_side_by_side_nobody_gets_more_than_the_limit(opened: Opened) -> None:
    key, limit, got = fresh(), 2_000, [0, 0, 0, 0]

    def work(k: int) -> None:
        mine = opened.open()
        while True:
            try:
                with mine.transaction() as counts:
                    taken = counts.lease(key, 1, 7, limit).taken
            except UnavailableError:
                continue  # SQLite, for longer than it waits
            if not taken:
                break
            got[k] += taken
        mine.close()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == limit


def test_two_programs_that_write_many_counts_do_not_wait_for_each_other_for_ever(opened: Opened) -> None:
    callers = [fresh()[1] for _ in range(20)]
    books = [BudgetBook(opened.open()) for _ in range(2)]
    failures: list[Exception] = []

    def work(book: BudgetBook, names: list[str]) -> None:
        try:
            for _ in range(10):
                assert all(book.charge("m", "ever", 10**6, [(name, 20_000) for name in names]))
        except Exception as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(book, callers[::step])) for book, step in zip(books, (1, -1), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for book in books:
        book.close()
    store = opened.open()
    with store.transaction() as counts:
        assert [counts.read(("m", name, "ever")) for name in callers] == [400_000] * 20
    store.close()


def test_a_failed_transaction_leaves_the_store_usable(store: Store) -> None:
    key = fresh()
    with contextlib.suppress(RuntimeError), store.transaction() as counts:
        counts.lease(key, 5, 0, 10)
        raise RuntimeError
    with store.transaction() as counts:
        assert counts.read(key) in {0, 5}  # never more than was asked for
        assert counts.lease(key, 5, 0, 10).taken == 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_a_store_that_goes_and_comes_back(kind: str) -> None:
    """Nothing is granted while it is away beyond what was leased, every failure is one that says so, and no count is lost."""
    with postgres() if kind == "postgres" else redis_or_valkey() as database:
        book = BudgetBook(open_store(database.url, Path()))
        limit, given = 64_000, 0
        for _ in range(30):
            given += 100 * book.charge("m", "ever", limit, [("alice", 100)])[0]
        database.end()
        before, refused = given, 0
        for _ in range(40):
            try:
                given += 100 * book.charge("m", "ever", limit, [("alice", 100)])[0]
            except UnavailableError:
                refused += 1
        assert refused >= 30
        assert given - before <= 1000  # the rest of a lease
        assert book.charge_at_once("m", "ever", limit, [("alice", 100)]) is None
        database.start()
        time.sleep(DOWN_SECONDS + 0.1)
        recovered = time.monotonic()
        while given < before + 3000 and time.monotonic() - recovered < 10:
            try:
                given += 100 * book.charge("m", "ever", limit, [("alice", 100)])[0]
            except UnavailableError:
                time.sleep(0.05)
        assert given >= before + 3000
        book.close()
        again = BudgetBook(open_store(database.url, Path()))
        left = again.remaining("m", "alice", "ever", limit)
        again.close()
        assert (
            limit - given - 1000 <= left <= limit - given
        )  # what a broken connection took with it, and never more than is right


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_a_store_that_hangs_holds_nobody_up(kind: str) -> None:
    with postgres() if kind == "postgres" else redis_or_valkey() as database:
        book = BudgetBook(open_store(database.url, Path()))
        assert book.charge("m", "ever", 10**6, [("alice", 1), ("carol", 1)]) == [True, True]
        database.signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="try again"):
            book.charge("m", "ever", 10**6, [("alice", 100_000)])
        assert time.monotonic() - began < MOST_SECONDS + 2
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            book.remaining("m", "bob", "ever", 10**6)
        assert time.monotonic() - began < 0.2  # nobody tries again at once
        assert book.charge("m", "ever", 10**6, [("carol", 1)]) == [True]  # leased before
        database.signal(signal.SIGCONT)
        time.sleep(DOWN_SECONDS + 0.1)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                assert book.charge("m", "ever", 10**6, [("bob", 5)]) == [True]
                break
            except UnavailableError:
                time.sleep(0.1)
        assert book.remaining("m", "bob", "ever", 10**6) == 10**6 - 5
        book.close()


@pytest.mark.slow
def test_a_redis_that_may_forget_or_was_emptied_is_not_used() -> None:
    import redis

    with redis_or_valkey("--appendonly", "no") as forgetful:
        with pytest.raises(ConfigError, match="appendfsync always"):
            open_store(forgetful.url, Path())
        store = open_store(forgetful.url, Path(), may_forget=True)  # on purpose
        with store.transaction() as counts:
            assert counts.lease(ALICE, 5, 0, 10).taken == 5
        forgetful.end()
        forgetful.start()
        time.sleep(DOWN_SECONDS + 0.1)
        for _ in range(2):  # else all budgets would begin anew
            with pytest.raises(UnavailableError), store.transaction() as counts:
                counts.lease(ALICE, 5, 0, 10)
            time.sleep(DOWN_SECONDS + 0.1)
        store.close()
    with redis_or_valkey() as lasting:
        store = open_store(lasting.url.replace("redis://", "valkey://"), Path())
        with redis.Redis(port=lasting.port) as client:
            client.config_set("maxmemory", "100mb")
            client.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(ConfigError, match="noeviction"):
                open_store(lasting.url, Path())
            client.config_set("maxmemory", "0")
            with store.transaction() as counts:
                assert counts.lease(ALICE, 5, 0, 10).taken == 5
            client.flushall()
            with pytest.raises(UnavailableError), store.transaction() as counts:
                counts.read(ALICE)
        store.close()


@pytest.mark.slow
def test_a_postgres_that_was_emptied_is_not_used() -> None:
    import psycopg

    with postgres() as database:
        store = open_store(database.url, Path())
        with store.transaction() as counts:
            assert counts.lease(ALICE, 5, 0, 10).taken == 5
        with psycopg.connect(database.url, autocommit=True) as other:
            other.execute("DROP TABLE garrison_spent, garrison_store")
        open_store(database.url, Path()).close()  # somebody makes new tables
        with psycopg.connect(database.url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'garrison'")
        for _ in range(2):
            with pytest.raises(UnavailableError), store.transaction() as counts:
                counts.lease(ALICE, 5, 0, 10)
            time.sleep(DOWN_SECONDS + 0.1)
        store.close()


def test_who_opens_a_new_store_waits_for_another_who_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Front workers start side by side; SQLite itself refuses the second at once."""
    with (
        ThreadPoolExecutor(1) as pool,
        contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(sqlite, "_OPENING_SECONDS", 0.1)
        with pytest.raises(ConfigError, match="locked"):
            SqliteStore(tmp_path)
        monkeypatch.setattr(sqlite, "_OPENING_SECONDS", PATIENT_SECONDS)
        opening = pool.submit(SqliteStore, tmp_path)
        time.sleep(0.2)
        assert not opening.done()
        other.execute("ROLLBACK")
        opening.result().close()


@pytest.mark.parametrize("url", ["mysql://a/b", "postgresql", "file:///etc/passwd", "redis:localhost", " "])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.store"):
        scheme_of(url)


@pytest.mark.parametrize(
    "url", ["postgresql://127.0.0.1:1/none", "redis://127.0.0.1:1/0", "redis://127.0.0.1:1/x", "postgresql://a:b:c/d"]
)
def test_a_server_that_is_not_there_is_told_at_the_start(url: str) -> None:
    with pytest.raises(GarrisonError):
        open_store(url, Path())


def test_a_password_is_never_shown() -> None:
    assert (
        in_words("postgresql://garrison:secret@db.example.org:5432/counts?password=secret")
        == "postgresql://db.example.org:5432/counts"
    )
    assert in_words("redis://:secret@[::1]:6379/0") == "redis://[::1]:6379/0"
    assert "secret" not in in_words("redis://:secret@[::1")


def test_sqlite_is_the_default(tmp_path: Path) -> None:
    store = open_store("", tmp_path)
    assert isinstance(store, SqliteStore)
    store.close()
