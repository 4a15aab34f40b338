"""`--isolation process`: the service in a process of its own, confined as well as this machine allows. A simulation of an enclave.

It keeps plaintext and keys from the server, from other users and from other programs of the same user, and takes from the code
that reads strangers' requests all that it does not need. It does not keep them from root who injects code, nor from what runs
below the kernel; its evidence is of type "sim" and proves nothing.

When the process dies, requests in flight fail with `UnavailableError`, and a fresh one with fresh keys is started: at once, unless that
happens again and again (see `garrison.enclave.restarts`). Budgets are the server's and stay as they are.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec

from garrison.attest.evidence import Evidence
from garrison.enclave.conversation import Asked, Conversation, is_at_fault
from garrison.enclave.host import Launch, ServiceCard
from garrison.enclave.levels import FULL, check_level
from garrison.enclave.program import LOG_SECONDS, Program, spawn
from garrison.enclave.quotes import Quoter
from garrison.enclave.restarts import Restarts
from garrison.enclave.snapshots import SnapshotKeeper, Snapshots
from garrison.enclave.talk import Ready, Start
from garrison.errors import FrameError, GarrisonError, IsolationError, UnavailableError
from garrison.guard.drifting.report import DriftReport
from garrison.guard.watching.book import Alarm
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.protocol.messages import Ask, Reply

logger = logging.getLogger(__name__)

START_SECONDS = 120.0
"""A worker that is not ready after this is ended: a large bundle takes a while to verify."""
SPARE_AFTER_SECONDS = 0.25
"""A worker that lives this long gets a spare, which waits with its libraries loaded."""
_END_SECONDS = 5.0


class Worker:
    """One process and the pipe to it. The first message is answered when this is made.

    Args:
        start: what it is to serve.
        program: one that waits already; None to start one.

    Raises:
        IsolationError: it cannot be started.
        GarrisonError: what it said of the bundle, the guard or the key.
        FrameError: it died at start.
    """

    def __init__(self, start: Launch, program: Program | None = None) -> None:
        self.born = time.monotonic()
        running = spawn(start.secret_heap_bytes, start.lines) if program is None else program
        self.process, self._log = running.process, running.log
        self._lines = list(running.lines)
        self._talk = Conversation(running.pipe, start.limits, START_SECONDS, self._kill)
        try:
            ready = self._introduce(start)
            self._talk.bound(start.limits.enclave_seconds)
        except BaseException:
            self.end()
            raise
        self.card: ServiceCard = ready.card
        self.mend = ready.mend
        self.call, self.begin, self.attest = self._talk.call, self._talk.begin, self._talk.attest
        self.resume, self.take_snapshot = self._talk.resume, self._talk.take_snapshot
        self.alarms, self.clear_alarm = self._talk.alarms, self._talk.clear_alarm
        self.drift = self._talk.drift
        self.witness = self._talk.witness

    def take_line(self) -> socket.socket | None:
        """The end of a pipe that nobody has used; None where there is none left."""
        return self._lines.pop() if self._lines else None

    def end(self) -> None:
        """Close the pipe, at which the process ends by itself; kill it if it does not."""
        for line in self._lines:
            line.close()
        self._talk.close()
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            self.process.wait()
        self._log.join(LOG_SECONDS)

    def _introduce(self, start: Launch) -> Ready:
        answer = self._talk.ask(
            Start(
                bundle=str(start.bundle.absolute()),
                trusted=tuple(key.pem for key in start.trusted),
                key=start.key,
                tightened={name: dict(change) for name, change in start.tightened.items()},
                callers={name: dict(policy) for name, policy in start.callers.items()},
                limits=start.limits,
                parameter_memory=start.parameter_memory,
                user=start.user,
            )
        )
        if not isinstance(answer, Ready):
            raise FrameError("the enclave's process begins with another message than that it is ready")
        return answer

    def _kill(self, error: FrameError | None = None) -> None:
        if error is not None and is_at_fault(error):
            logger.error("the enclave's process is late or lies, and is ended: %s", error)
        with contextlib.suppress(OSError):
            self.process.kill()


class ProcessEnclave:
    """A worker, and another one whenever it dies.

    Args:
        quoter: who vouches for the process; None for the simulated quotes that it makes itself.

    Raises:
        IsolationError: it cannot be started as asked, or reaches less than is required.
        GarrisonError: what the worker said of the bundle, the guard or the key.

    Attributes:
        on_change: called, on another thread, when a fresh worker has taken a dead one's place.
        keeps_spare: have another program wait with its libraries loaded.
    """

    on_change: Callable[[], None] | None = None
    restarts: int = 0
    """Workers that took a dead one's place."""
    keeps_spare: ClassVar[bool] = True
    _snapshots: Snapshots | None = None
    """Made when the first worker says that its guard remembers callers."""

    def __init__(self, start: Launch, quoter: Quoter | None = None) -> None:
        self._start = start
        self._quoter = quoter
        self._stopping = threading.Event()
        self._restarts = Restarts()
        self._spare = start.program
        try:
            self._worker: Worker | None = self._checked()
        except BaseException as error:
            if self._snapshots is not None:
                self._snapshots.close()
            if isinstance(error, FrameError):
                why = f"the enclave's process ended while it started ({error}); its log says why"
                raise IsolationError(why) from error
            raise
        self._card = self._vouched(self._worker.card)
        _tell(self._worker)
        self._snapshot_keeper = None if self._snapshots is None else SnapshotKeeper(self._snapshots, self._snapshot)
        self._keeper = threading.Thread(target=self._keep, name="garrison-enclave", daemon=True)
        self._keeper.start()

    @property
    def card(self) -> ServiceCard:
        return self._card

    @property
    def ready(self) -> bool:
        worker = self._worker
        return worker is not None and worker.process.poll() is None

    @property
    def process_id(self) -> int:
        """Of the present worker.

        Raises:
            UnavailableError: there is none just now.
        """
        return self._present().process.pid

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        return self._present().call(asks)

    def begin(self, asks: Sequence[Ask], *, cheap: bool) -> Asked | None:  # noqa: ARG002  it sends, and waits for nothing
        return self._present().begin(asks)

    def take_line(self) -> tuple[socket.socket, ServiceCard] | None:
        """A pipe to the present worker for a front worker, and the worker's card; None where there is none just now.

        A worker that has no pipe left is ended, and a fresh one will have some.
        """
        worker = self._worker
        if worker is None:
            return None
        line = worker.take_line()
        if line is None:
            logger.warning("the enclave's process has no pipe left for another front worker; it is ended")
            worker.process.kill()
            return None
        return line, self._vouched(worker.card)

    def end_hung(self, key: bytes) -> None:
        """End the worker with this public key: a front worker says that it does not answer."""
        worker = self._worker
        if worker is not None and worker.card.public_key == key:
            logger.error("the enclave's process does not answer; it is ended")
            worker.process.kill()

    def alarms(self) -> Sequence[Alarm]:
        return self._present().alarms()

    def drift(self) -> DriftReport | None:
        return self._present().drift()

    def clear_alarm(self, caller: str) -> bool:
        known = self._present().clear_alarm(caller)
        if self._snapshot_keeper is not None:
            self._snapshot_keeper.now()
        return known

    def witness(self, ledger: bytes, at: int, head: bytes, start: bytes = b"", bodies: bytes = b"") -> SignedCheckpoint:
        return self._present().witness(ledger, at, head, start, bodies)

    def evidence(self, nonce: bytes) -> Evidence:
        evidence = self._present().attest(nonce)
        if self._quoter is None:
            return evidence
        return msgspec.structs.replace(evidence, quote=self._quoter.quote(evidence.expected_report_data()))

    def stop(self) -> None:
        """End the worker, and start no other."""
        if self._snapshot_keeper is not None:
            self._snapshot_keeper.stop()
        self._stopping.set()
        worker = self._worker
        if worker is not None:
            worker.end()
        self._keeper.join(_END_SECONDS)
        if self._spare is not None:
            self._spare.end()

    def _program(self) -> Program:
        """A fresh inner program."""
        return spawn(self._start.secret_heap_bytes, self._start.lines)

    def _vouched(self, card: ServiceCard) -> ServiceCard:
        """The worker's card, with the technology of who vouches for it."""
        if self._quoter is None:
            return card
        technology = self._quoter.technology
        return msgspec.structs.replace(card, technology=technology, isolation=f"{technology}, {card.isolation}")

    def _present(self) -> Worker:
        worker = self._worker
        if worker is None:
            raise UnavailableError("the enclave is being started anew; try again")
        return worker

    def _checked(self) -> Worker:
        spare, self._spare = self._spare, None
        if spare is not None and spare.process.poll() is not None:
            spare.end()
            spare = None
        worker = Worker(self._start, self._program() if spare is None else spare)
        try:
            card = self._vouched(worker.card)
            check_level(self._start.require, card.isolation, card.technology, card.capabilities, worker.mend)
            self._resume(worker)
        except GarrisonError:
            worker.end()
            raise
        return worker

    def _resume(self, worker: Worker) -> None:
        """Hand a fresh worker what the one before it knew of callers."""
        if not worker.card.keeps_state:
            return
        if self._snapshots is None:
            self._snapshots = Snapshots(self._start.snapshots, worker.card.manifest_digest)
        worker.resume(self._snapshots.latest, self._snapshots.key)

    def _snapshot(self) -> bytes | None:
        return self._present().take_snapshot()

    def _keep(self) -> None:
        """Wait for the worker's death, and see to another; until `stop`."""
        wait = 0.0
        while not self._stopping.is_set():
            worker = self._worker
            if worker is not None:
                code = self._outlive(worker)
                self._worker = None
                if self._stopping.is_set():
                    return
                wait = self._restarts.died()
                when = f"in {wait:.1f} s, as it has died so often" if wait else "now"
                logger.error(
                    "the enclave's process has died (%s); a fresh one with fresh keys starts %s", _cause(code), when
                )
                worker.end()
            if self._stopping.wait(wait):
                return
            if not self._renew():
                wait = self._restarts.failed()

    def _outlive(self, worker: Worker) -> int:
        """Wait for its death; meanwhile have another program load its libraries, which is most of what a start takes."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return worker.process.wait(SPARE_AFTER_SECONDS)
        if self.keeps_spare and self._spare is None and not self._stopping.is_set():
            try:
                self._spare = self._program()
            except IsolationError as error:
                logger.warning("there is no spare for the enclave's process: %s", error)
        return worker.process.wait()

    def _check_same(self, worker: Worker) -> None:
        """A fresh worker serves what the server was started with: files that were exchanged meanwhile must not count unnoticed."""
        found, expected = worker.card.manifest_digest, self._card.manifest_digest
        if found != expected:
            worker.end()
            where = f"{self._start.bundle} (manifest {found}, not {expected})"
            raise IsolationError(
                f"another model than at the start of the server lies in {where}: start the server anew"
            )
        if self._vouched(worker.card).isolation != self._card.isolation:
            _tell(worker)

    def _renew(self) -> bool:
        try:
            worker = self._checked()
            self._check_same(worker)
        except GarrisonError as error:
            logger.error("the enclave does not start: %s", error)  # noqa: TRY400
            return False
        except Exception:
            logger.exception("the enclave does not start")
            return False
        self._card = self._vouched(worker.card)
        self._worker = worker
        self.restarts += 1
        if self._stopping.is_set():
            worker.end()
        if self.on_change is not None:
            self.on_change()
        logger.warning("the enclave serves again, after %.2f s to start", time.monotonic() - worker.born)
        return True


def _cause(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _tell(worker: Worker) -> None:
    """Say loudly what is missing."""
    logger.info("isolation: %s", worker.card.isolation)
    for name in FULL:
        if name in worker.mend:
            logger.warning("isolation: no %s: %s", name, worker.mend[name])
