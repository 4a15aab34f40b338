"""A ledger with an enclave that signs it, without a server in front."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.serving import Bundles
from tests.simulated import Simulated

from garrison.config import Config, LedgerConfig, ServerConfig
from garrison.limits import Limits
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.server.ledger.ledger import Ledger
from garrison.server.ledger.records import Answers, Chain, Entry
from garrison.server.ledger.trust import KeyTrust, policy_of
from garrison.server.ledger.verify import ChainReport, verify_ledger


class Signing(Simulated):
    """An enclave that signs ledgers; may be asked for several things at once."""

    def witness(self, ledger: bytes, at: int, head: bytes, start: bytes = b"", bodies: bytes = b"") -> SignedCheckpoint:
        return self.service.witness.sign(ledger, at, head, start, bodies)

    def _alone(self, more: int) -> None:
        pass


def settings(folder: Path, **ledger: Any) -> Config:
    return Config(
        server=ServerConfig(state=str(folder / "state")), ledger=LedgerConfig(folder=str(folder / "l"), **ledger)
    )


def fill(ledger: Ledger, lines: int, each: int = 3) -> list[bool]:
    """Lines of answers, each written for itself; whether each is on the disk."""
    told: list[bool] = []
    for k in range(lines):
        entries = tuple(Entry(f"caller-{k}", 1, request=f"{k:064x}", nonce=f"{k}.{i}") for i in range(each))

        def make(chain: Chain, entries: tuple[Entry, ...] = entries) -> bytes:
            return chain.add(Answers(chain.seq, time.time(), "mlp", 1, entries))

        ledger._writer.put(make, told.append, each)
        wait(lambda k=k: len(told) > k)  # type: ignore[misc]
    return told


def wait(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            pytest.fail("waited in vain")
        time.sleep(0.002)


class FailingDisk:
    """Fails to synchronise while it is told to; what was written meanwhile may or may not be on it."""

    def __init__(self) -> None:
        self.fails = False

    def __call__(self, descriptor: int) -> None:
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(descriptor)


class Room:
    """Makes ledgers in one folder."""

    def __init__(self, folder: Path, bundles: Bundles, enclave: Signing) -> None:
        self.folder = folder
        self.path = folder / "l"
        self.chain = self.path / "chain-000"
        self.enclave = enclave
        self.owner = bundles.owner.public.fingerprint

    @contextmanager
    def open(self, sync: Callable[[int], None] = os.fdatasync, **settings_: Any) -> Iterator[Ledger]:
        settings_ = {"checkpoint_seconds": 1000.0} | settings_
        ledger = Ledger(settings(self.folder, **settings_), [self.enclave], sync=sync)
        wait(lambda: ledger.entries >= 5)
        with ledger._notary._turn:  # its first round has ended, so that no signature of its own comes in between
            pass
        try:
            yield ledger
        finally:
            ledger.close()

    def made(self, lines: int = 6, **settings_: Any) -> Room:
        """With a ledger of some lines, three entries each, signed in the middle and at the end."""
        with self.open(**settings_) as ledger:
            fill(ledger, lines // 2)
            ledger.sign()
            fill(ledger, lines - lines // 2)
            ledger.sign()
        return self

    @property
    def trust(self) -> KeyTrust:
        return KeyTrust(policy_of(None, (self.owner,), allow_simulated=True))

    def verify(self, **more: Any) -> ChainReport:
        (report,) = verify_ledger(self.path, self.trust, **more)
        return report

    @property
    def segments(self) -> list[Path]:
        return sorted(self.chain.glob("*.jsonl"))


@pytest.fixture(scope="module")
def enclave(bundles: Bundles) -> Signing:
    return Signing(bundles.sealed["mlp-1"], Limits())


@pytest.fixture
def room(tmp_path: Path, bundles: Bundles, enclave: Signing) -> Room:
    return Room(tmp_path, bundles, enclave)
