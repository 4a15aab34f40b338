"""Faults under load: after each, the service recovers by itself, nobody was told anything wrong, and ledger and budget agree with what callers were answered."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from benchmarks.endurance import resident
from tests.models import Sealed
from tests.server.databases import postgres, redis_or_valkey
from tests.server.faults import PATIENT_SECONDS, Account, seal_model, under_load

from garrison.server.budgets import FILE_NAME
from garrison.server.stores.base import DOWN_SECONDS

logger = logging.getLogger(__name__)

RECOVERY_SECONDS = 2.0
LAST_SECONDS = 0.1
"""So long after the kill, answers may still come that were ready before it."""
FAULT_SECONDS = 3.0
"""Longer than a lease of rows lasts at this load."""

MOST_LOST_ROWS = 4 * 4_096
"""Leases whose end a broken connection took with it: never more than is right is given back."""


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_model(tmp_path_factory.mktemp("sealed"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", str(place)]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def tell(account: Account, what: str) -> None:
    told, held = account.told, account.held
    logger.info(
        "%s: asked %d, %s, broken %d; ledger %d entries, %d unclaimed; charged %d; held back %d",
        *(what, told.sent, dict(told.statuses), told.broken, held.entries, held.unclaimed, account.charged),
        account.held_back,
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_enclave_is_killed_again_and_again(sealed: Sealed, tmp_path: Path, workers: int) -> None:
    with under_load(tmp_path, sealed, "--workers", str(workers)) as running:
        recoveries = []
        for _ in range(5):
            time.sleep(1.5)
            killed = time.monotonic()
            os.kill(running.enclave, signal.SIGKILL)
            running.refused_within()
            recoveries.append(running.good_after(killed + LAST_SECONDS) + LAST_SECONDS)
        account = running.account()
    shown = ", ".join(f"{seconds:.2f}" for seconds in recoveries)
    tell(account, f"enclave killed, {workers} workers: served again after {shown} s")
    account.check()
    assert account.told.statuses[503] > 0
    assert account.charged == account.told.statuses[200], (
        f"killed before it answered, nothing is charged: {account.log[-3000:]}"
    )
    assert account.held.unclaimed == 0
    assert max(recoveries) < PATIENT_SECONDS, "tests/enclave/backends/test_recovery.py asks for 2 seconds"


@pytest.mark.slow
def test_sqlite_is_locked_by_another_program(sealed: Sealed, tmp_path: Path) -> None:
    with under_load(tmp_path, sealed) as running:
        other = sqlite3.connect(tmp_path / "state" / FILE_NAME, isolation_level=None, timeout=10)
        other.execute("BEGIN EXCLUSIVE")
        running.refused_within()
        time.sleep(FAULT_SECONDS)
        other.execute("ROLLBACK")
        other.close()
        recovered = running.good_after(time.monotonic(), 200)
        account = running.account()
    tell(account, f"SQLite locked: served again after {recovered:.2f} s")
    account.check()
    assert account.charged == account.told.statuses[200] + account.held.unclaimed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres", "redis"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["power cut", "stopped"])
def test_the_store_goes_and_comes_back(sealed: Sealed, tmp_path: Path, kind: str, end: signal.Signals) -> None:
    with postgres() if kind == "postgres" else redis_or_valkey() as database:
        with under_load(tmp_path, sealed, store=database.url) as running:
            for _ in range(2):
                time.sleep(1.0)
                database.end(end)
                running.refused_within()
                time.sleep(FAULT_SECONDS)
                database.start()
                recovered = running.good_after(time.monotonic() + DOWN_SECONDS, 200)
            account = running.account()
        tell(account, f"{kind} restarted ({end.name}): served again after {recovered:.2f} s")
        account.check()
        answered = account.told.statuses[200] + account.held.unclaimed
        assert account.charged >= answered, "who is answered has paid"
        assert account.charged <= answered + MOST_LOST_ROWS


@pytest.mark.slow
def test_the_ledgers_disk_is_full_and_has_room_again(sealed: Sealed, tmp_path: Path, small_disk: Path) -> None:
    with under_load(tmp_path, sealed, ledger=small_disk / "ledger") as running:
        running.refused_within()
        time.sleep(FAULT_SECONDS)
        subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
        recovered = running.good_after(time.monotonic(), 200)
        account = running.account()
    tell(account, f"ledger's disk full: served again after {recovered:.2f} s")
    account.check()
    assert "No space left" in account.log
    assert account.held_back > 0
    assert 0 <= account.charged - account.told.statuses[200] <= account.held_back, (
        "charged and held back: those under way"
    )


@pytest.mark.slow
def test_the_stores_disk_is_full_and_has_room_again(sealed: Sealed, tmp_path: Path, small_disk: Path) -> None:
    with under_load(tmp_path, sealed, state=small_disk / "state") as running:
        filler = small_disk / "filler"
        fill(filler)
        running.refused_within()
        time.sleep(FAULT_SECONDS)
        filler.unlink()
        recovered = running.good_after(time.monotonic(), 200)
        account = running.account()
    tell(account, f"store's disk full: served again after {recovered:.2f} s")
    account.check()
    answered = account.told.statuses[200] + account.held.unclaimed
    assert answered <= account.charged <= answered + MOST_LOST_ROWS, (
        "what a failed commit left is not known, so the lease is forgotten"
    )


def fill(path: Path) -> None:
    """Write until there is no room."""
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


@pytest.mark.slow
def test_without_a_fault_all_is_answered_once_and_charged_once(sealed: Sealed, tmp_path: Path) -> None:
    """The control: the account has no room to hide a loss in."""
    with under_load(tmp_path, sealed) as running:
        running.good_after(time.monotonic(), 500)
        account = running.account()
    tell(account, "no fault")
    account.check()
    assert set(account.told.statuses) == {200}
    assert account.charged == account.told.sent == account.held.entries == account.told.statuses[200]
    assert account.held.unclaimed == 0


HALF_OPEN, READ_SECONDS, MOST_MIB = 1_000, 3, 32.0
BEGUN = b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nX-A: "
NO_BODY = b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n{"
KINDS = (b"", BEGUN, NO_BODY)
"""Nothing at all, the beginning of a head, the beginning of a body."""


def descriptors(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


@pytest.mark.slow
def test_a_thousand_half_open_clients_hold_up_nobody(sealed: Sealed, tmp_path: Path) -> None:
    """Those that sent a beginning add a byte now and then, as a slow client would. All are ended; nobody else is."""
    settings = f"[limits]\nheader_read_seconds = {READ_SECONDS}\nbody_read_seconds = {READ_SECONDS}\n"
    with under_load(tmp_path, sealed, settings=settings) as running, ExitStack() as stack:
        before = descriptors(running.process.pid), resident(running.process.pid)["server"]
        poll, clients = select.epoll(), {}
        began = time.monotonic()
        for k in range(HALF_OPEN):
            client = stack.enter_context(socket.create_connection(running.address, timeout=10))
            client.sendall(KINDS[k % len(KINDS)])
            poll.register(client.fileno(), select.EPOLLIN)
            clients[client.fileno()] = client
        opened = time.monotonic()
        while clients and time.monotonic() - opened < 10 * READ_SECONDS:
            for descriptor, _ in poll.poll(0.5):
                if is_ended(clients[descriptor]):
                    poll.unregister(descriptor)
                    clients.pop(descriptor).close()
            for k, client in enumerate(list(clients.values())):
                if k % 2:
                    with suppress(OSError):
                        client.sendall(b"a")
        ended = time.monotonic()
        assert not clients, f"{len(clients)} are still open after {ended - opened:.0f} s"
        running.good_after(time.monotonic(), 200)
        after = descriptors(running.process.pid), resident(running.process.pid)["server"]
        good = [t for t in running.told.good_times if began <= t <= ended]
        gaps = max(b - a for a, b in pairwise(good))
        account = running.account()
    tell(
        account,
        f"half-open: opened in {opened - began:.1f} s, ended after {ended - opened:.1f} s; longest gap {gaps:.2f} s",
    )
    account.check()
    assert set(account.told.statuses) == {200}
    assert account.told.broken == 0
    assert after[0] <= before[0] + 8
    assert after[1] <= before[1] + MOST_MIB
    assert gaps < RECOVERY_SECONDS


def is_ended(client: socket.socket) -> bool:
    """One that got an answer may still be open."""
    try:
        return client.recv(1 << 16) == b""
    except OSError:
        return True
