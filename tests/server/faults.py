"""`garrison serve` with a ledger and a budget, callers who ask without a pause, and the account of it all afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from benchmarks.proved_load import Held, ProvedLoad, Told, hold_against
from tests.models import BOUNDS, CLASSES, RELEASE, Sealed, images, seal_mlp
from tests.serving import budget

from garrison.enclave.host import Launch, launch
from garrison.protocol.messages import Ask
from garrison.protocol.oip_client import encode_request
from garrison.server.budgets import BudgetBook
from garrison.server.ledger.reader import records_of
from garrison.server.ledger.records import Outage
from garrison.server.ledger.trust import KeyTrust, policy_of
from garrison.server.ledger.verify import verify_ledger
from garrison.server.stores import open_store
from garrison.types import Array

ROWS = 10**7
CALLER = "ip:127.0.0.1"
INFER = "/v2/models/mlp/infer"
BODIES, CONNECTIONS = 256, 16
START_SECONDS = 60.0
PATIENT_SECONDS = 60.0


def seal_model(folder: Path) -> Sealed:
    sealed = seal_mlp(folder / "mlp", chain=(BOUNDS, budget(ROWS), RELEASE))
    (folder / "owner.pub").write_bytes(sealed.owner.public.pem)
    return sealed


def right_answers(sealed: Sealed) -> tuple[Array, Array]:
    """Inputs, and what the model answers to them."""
    x = images(BODIES, seed=8)
    (reply,) = launch("none", Launch(sealed.path, [sealed.owner.public])).call(
        [Ask("caller", -1, *encode_request({"image": x}))]
    )
    return x, np.frombuffer(reply.body[-4 * CLASSES * BODIES :], np.float32).reshape(BODIES, CLASSES)


@dataclass
class Account:
    """What came of a load, when the server has ended.

    Attributes:
        charged: rows that are gone from the caller's budget.
        held_back: requests that the ledger names as held back by an outage.
        log: what the server wrote.
    """

    told: Told
    held: Held
    charged: int
    held_back: int
    log: str

    def check(self) -> None:
        """Nothing wrong was said, and nothing was lost or doubled."""
        told = self.told
        assert told.unproved == []
        assert told.wrong == []
        assert told.mute == 0
        assert set(told.statuses) <= {200, 503}, told.statuses
        assert set(told.codes) <= {"unavailable"}, told.codes
        assert (self.held.missing, self.held.doubled, self.held.other, self.held.strange) == (0, 0, 0, 0), self.held
        assert self.held.unclaimed <= told.broken + told.statuses[503]
        assert "Traceback" not in self.log, self.log[-5_000:]


@dataclass
class UnderLoad:
    """A server and its callers.

    Attributes:
        folder: its state, ledger and log.
        store: URL of the database of budgets; "" for SQLite in the state folder.
        process: the server's first process.
    """

    folder: Path
    sealed: Sealed
    store: str = ""
    state: Path = Path()
    ledger: Path = Path()
    process: subprocess.Popen[str] = field(init=False)
    load: ProvedLoad = field(init=False)
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def ask(self, url: str) -> None:
        """Begin the load."""
        x, right = right_answers(self.sealed)

        def check(row: int, body: bytes) -> str:
            got = np.frombuffer(body[-4 * CLASSES :], np.float32)
            return "" if np.allclose(got, right[row], atol=1e-5) else f"row {row}: {got}"

        bodies = [encode_request({"image": x[k : k + 1]}) for k in range(len(x))]
        self.load = ProvedLoad(url, INFER, bodies, connections=CONNECTIONS, check=check, keeps=True)
        self._thread = threading.Thread(target=self.load.run, args=(self._done.is_set,))
        self._thread.start()

    def end_load(self) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def told(self) -> Told:
        return self.load.told

    @property
    def enclave(self) -> int:
        """The one that answers: a child that is no front worker, older than the spare."""
        return min((child for child in children(self.process.pid) if not is_front(child)), key=started)

    @property
    def address(self) -> tuple[str, int]:
        return self.load.address

    def good_after(self, moment: float, answers: int = 1, seconds: float = PATIENT_SECONDS) -> float:
        """Seconds from a moment until so many good answers came after it.

        Raises:
            AssertionError: it took longer.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            later = [t for t in self.told.good_times[-4096:] if t > moment]
            if len(later) >= answers:
                return later[answers - 1] - moment
            time.sleep(0.01)
        raise AssertionError(f"no {answers} good answers within {seconds} s: {self.told.statuses}, {self.told.codes}")

    def refused_within(self, seconds: float = PATIENT_SECONDS) -> None:
        """Wait until somebody is told to come again."""
        before, end = self.told.statuses[503], time.monotonic() + seconds
        while self.told.statuses[503] == before:
            assert time.monotonic() < end, "the fault did nothing"
            time.sleep(0.01)

    def account(self) -> Account:
        """End load and server in good order, and add up."""
        self.end_load()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        trust = KeyTrust(policy_of(None, (self.sealed.owner.public.fingerprint,), allow_simulated=True))
        reports = verify_ledger(self.ledger, trust)
        assert [report.problem for report in reports] == [""] * len(reports)
        book = BudgetBook(open_store(self.store, self.state))
        charged = ROWS - book.remaining("mlp", CALLER, "ever", ROWS)
        book.close()
        outages = [r for report in reports for r in records_of(self.ledger / report.name) if isinstance(r, Outage)]
        return Account(
            self.told,
            hold_against(self.ledger, self.load),
            charged,
            sum(outage.held for outage in outages),
            (self.folder / "log").read_text(),
        )


@contextmanager
def under_load(
    folder: Path,
    sealed: Sealed,
    *more: str,
    store: str = "",
    state: Path | None = None,
    ledger: Path | None = None,
    settings: str = "",
) -> Iterator[UnderLoad]:
    """A server under load; both end with `account`, or at the latest with the block."""
    found = UnderLoad(folder, sealed, store, state or folder / "state", ledger or folder / "ledger")
    words = [sys.executable, "-m", "garrison", "serve", str(sealed.path), "--port", "0", "--isolation", "process"]
    words += ["--trust", str(sealed.path.parent / "owner.pub"), "--state", str(found.state)]
    words += ["--ledger", str(found.ledger), *more]
    if store or settings:
        in_store = f'[server]\nstore = "{store}"\n' if store else ""
        (folder / "settings.toml").write_text(in_store + settings)
        words += ["--config", str(folder / "settings.toml")]
    with (folder / "log").open("w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        found.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=folder
        )
    try:
        url = (found.process.stdout.readline() if found.process.stdout else "").strip()
        assert url.startswith("http"), (folder / "log").read_text()
        found.ask(url)
        found.good_after(time.monotonic(), 50)
        yield found
    finally:
        found.end_load()
        found.process.kill()
        found.process.communicate()


def children(process: int) -> list[int]:
    """Of all its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return sorted(found)


def started(process: int) -> int:
    """When, in ticks since the system's start. Numbers of processes begin anew some day."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])


def is_front(process: int) -> bool:
    return b"garrison.server.front" in Path(f"/proc/{process}/cmdline").read_bytes()
