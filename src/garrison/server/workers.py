"""`--workers N`: front processes that share one listening socket, one enclave a model, and the budgets.

The server's first process starts the enclaves and the front workers and takes no requests itself. Each front worker has a pipe of
its own to each enclave, so that keys, evidence, replay set and caller state are one for all. A front worker that dies is replaced;
when the first process dies, all end. Without an enclave (`--isolation none`) each front worker runs the models itself; they sign alike.

The socket is made here alone and handed on, without SO_REUSEPORT: nobody else can take connections at the same port.
"""

from __future__ import annotations

import logging
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from garrison.config import Config
from garrison.crypto.owner import OwnerPublicKey
from garrison.enclave.host import Enclave, ServiceCard
from garrison.enclave.levels import NONE
from garrison.enclave.program import Program
from garrison.enclave.restarts import Restarts
from garrison.enclave.talk import Failed, failure, raised_again
from garrison.errors import ConfigError, FrameError, GarrisonError, UnavailableError
from garrison.server.control import Line, Listening, Lost, ServerEnd, Setup, Stop, Told, Wish
from garrison.server.launching import check_exposure, launch_all, state_folder, stop_all
from garrison.server.ledger.ledger import open_ledger
from garrison.server.listening import listen, url_of
from garrison.server.operations import Operations
from garrison.server.operator import open_operator
from garrison.server.tally import Counted, added, ended

logger = logging.getLogger(__name__)

PROGRAM = "garrison.server.front"
_SIGNING_KEY_BYTES = 32
_END_SECONDS = 5.0
_LINE_PAUSE = 0.05

OnReady = Callable[[str, Sequence[ServiceCard]], None]


@runtime_checkable
class Shared(Enclave, Protocol):
    """An enclave that several front workers can use."""

    on_change: Callable[[], None] | None

    def take_line(self) -> tuple[socket.socket, ServiceCard] | None: ...

    def end_hung(self, key: bytes) -> None: ...


@dataclass(eq=False)
class _Front:
    """A running front worker.

    Attributes:
        number: its place, 0 to N-1.
        keys: by enclave, the public key of the one that its latest pipe leads to.
        counted: what it said last that it has counted.
        failed: why it did not start.
    """

    number: int
    process: subprocess.Popen[bytes]
    end: ServerEnd
    lock: threading.Lock = field(default_factory=threading.Lock)
    keys: dict[int, bytes] = field(default_factory=dict)
    cards: tuple[ServiceCard, ...] = ()
    counted: Counted = field(default_factory=Counted)
    failed: Failed | None = None


class Workers:
    """The front workers of a server. To be used from one thread, which must be the first one's: it receives the signals.

    Args:
        config: the settings.
        listener: the socket that connections come to.
    """

    def __init__(self, config: Config, listener: socket.socket) -> None:
        self._config = config
        self._listener = listener
        self._setup: Setup | None = None
        self._enclaves: Sequence[Shared] = ()
        self._set_up = threading.Event()
        self._events: queue.SimpleQueue[_Front | None] = queue.SimpleQueue()
        self._fronts: dict[int, _Front] = {}
        self._restarts: dict[int, Restarts] = {}
        self._ended = Counted()
        self._due: dict[int, float] = {}
        self._stopping = False
        for number in range(config.server.workers):
            self._spawn(number)  # they load their libraries while enclaves start

    def start(self, setup: Setup, enclaves: Sequence[Shared]) -> Sequence[ServiceCard]:
        """Let all front workers begin, and wait until they listen.

        Args:
            setup: what each front worker is told first.
            enclaves: started; none where front workers run the models themselves.

        Raises:
            GarrisonError: why one of them does not start.
        """
        self._setup, self._enclaves = setup, enclaves
        for k, enclave in enumerate(enclaves):
            enclave.on_change = lambda k=k: self._renew_all(k)
        self._set_up.set()
        while not all(front.cards for front in self._fronts.values()):
            front = self._events.get()
            if front is None:
                raise UnavailableError("told to stop before it had started")
            if front.failed is not None:
                raise raised_again(front.failed)
            if not front.cards:
                raise UnavailableError("a front worker ended while it started; its log says why")
        return self._fronts[0].cards

    def serve(self) -> None:
        """Replace front workers that die, until told to stop."""
        while True:
            wait = min(self._due.values(), default=None)
            try:
                front = self._events.get(timeout=None if wait is None else max(0.0, wait - time.monotonic()))
            except queue.Empty:
                self._spawn_due()
                continue
            if front is None:
                return
            if front.process.returncode is not None:
                self._bury(front)

    def counted(self) -> list[Counted]:
        """What the front workers have counted, those that have ended too; a second old, at most. May be called from any thread."""
        return [self._ended, *(front.counted for front in list(self._fronts.values()))]

    def hand_on(self, number: signal.Signals) -> None:
        """Give a signal to all front workers. May be called from a signal handler."""
        for front in list(self._fronts.values()):
            with suppress(ProcessLookupError):
                front.process.send_signal(number)

    def tell_to_stop(self) -> None:
        """Let `serve` end. May be called from a signal handler, and from any thread."""
        self._events.put(None)

    def stop(self) -> None:
        """Let the front workers finish what is in flight, and end them."""
        self._stopping = True
        self._set_up.set()
        self._listener.close()
        for front in self._fronts.values():
            with suppress(FrameError):
                front.end.send(Stop())
        end = time.monotonic() + self._config.limits.stop_seconds + _END_SECONDS
        for front in self._fronts.values():
            try:
                front.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("front worker %d does not end; it is killed", front.process.pid)
                front.process.kill()
                front.process.wait()

    def _spawn_due(self) -> None:
        now = time.monotonic()
        for number in [number for number, due in self._due.items() if due <= now]:
            del self._due[number]
            self._spawn(number)

    def _bury(self, front: _Front) -> None:
        """A front worker has died: another takes its place, after a pause where that happens again and again."""
        if self._fronts.get(front.number) is not front:
            return
        del self._fronts[front.number]
        self._ended = added([self._ended, ended(front.counted)])
        restarts = self._restarts.setdefault(front.number, Restarts())
        wait = restarts.died() if front.cards else restarts.failed()
        logger.error("front worker %d has ended (%d); another is started", front.process.pid, front.process.returncode)
        self._due[front.number] = time.monotonic() + wait

    def _spawn(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        descriptors = theirs.fileno(), self._listener.fileno()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAM, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=descriptors,
            )
        front = self._fronts[number] = _Front(number, process, ServerEnd(ours))
        threading.Thread(target=self._attend, args=(front,), name=f"garrison-front-{number}", daemon=True).start()

    def _attend(self, front: _Front) -> None:
        """All that is said to and by one front worker, until it has gone."""
        self._set_up.wait()
        try:
            if self._setup is None:
                raise FrameError("the server stops before it has started")
            front.end.send(self._setup)
            for k in range(len(self._enclaves)):
                while not self._send_line(front, k):
                    time.sleep(_LINE_PAUSE)
            while True:
                self._hear(front)
        except FrameError:
            front.end.close()
        try:
            front.process.wait(self._config.limits.stop_seconds + _END_SECONDS)
        except subprocess.TimeoutExpired:
            front.process.kill()
            front.process.wait()
        self._events.put(front)

    def _hear(self, front: _Front) -> None:
        match front.end.receive():
            case Listening(cards):
                front.cards = cards
                self._events.put(front)
            case Failed() as failed:
                front.failed = failed
                self._events.put(front)
            case Counted() as counted:
                front.counted = counted
            case Lost(k, key, hung) if k < len(self._enclaves):
                if hung:
                    self._enclaves[k].end_hung(key)
                if front.keys.get(k) == key:
                    self._send_line(front, k)  # where the enclave has died too, `on_change` sends one later
            case Wish(k, nonce) if k < len(self._enclaves):
                front.end.send(_evidence(self._enclaves[k], nonce))
            case _:
                raise FrameError("a front worker says what it must not")

    def _send_line(self, front: _Front, enclave: int) -> bool:
        """Hand a fresh pipe to a front worker; whether there was one."""
        with front.lock:
            taken = self._enclaves[enclave].take_line()
            if taken is None:
                return self._stopping
            line, card = taken
            with line:
                front.end.send(Line(enclave, card), line.fileno())
            front.keys[enclave] = card.public_key
            return True

    def _renew_all(self, enclave: int) -> None:
        """An enclave has been started anew: every front worker that had a pipe to the old one gets one to this."""
        for front in list(self._fronts.values()):
            if enclave in front.keys:
                with suppress(FrameError):
                    self._send_line(front, enclave)


def _evidence(enclave: Enclave, nonce: bytes) -> Told:
    try:
        return Told(nonce, enclave.evidence(nonce))
    except GarrisonError as error:
        return Told(nonce, None, failure(error))


def run_workers(
    config: Config,
    bundles: Sequence[Path],
    trusted: Sequence[OwnerPublicKey],
    on_ready: OnReady,
    programs: Sequence[Program] = (),
) -> None:
    """Serve with `server.workers` front workers until SIGTERM or SIGINT, then finish what is in flight.

    Args:
        on_ready: called with the server's URL and what it serves, once all front workers listen.
        programs: see `garrison.server.root.launch_all`.

    Raises:
        GarrisonError: as `garrison.server.root.assemble` and `run` do.
    """
    check_exposure(config)
    alone = config.server.isolation == NONE
    listener = listen(config.server.host, config.server.port)
    url, enclaves = url_of(listener, tls=bool(config.server.tls_cert)), list[Enclave]()
    workers, operator, ledger, operations = Workers(config, listener), None, None, None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: workers.tell_to_stop())
    signal.signal(signal.SIGHUP, lambda *_: workers.hand_on(signal.SIGHUP))
    try:
        if not alone:
            enclaves = launch_all(config, bundles, trusted, lines=config.server.workers, programs=programs)
        shared = [enclave for enclave in enclaves if isinstance(enclave, Shared)]
        if len(shared) < len(enclaves):
            raise ConfigError(f"--isolation {config.server.isolation} takes one worker")
        ledger = (
            open_ledger(config, enclaves) if enclaves else None
        )  # of what operators do; each front worker has its own
        operator = open_operator(state_folder(config), enclaves, ledger)
        operations = Operations(config.operations, enclaves, workers.counted)
        on_ready(url, workers.start(_setup(config, bundles, trusted, alone=alone), shared))
        workers.serve()
    finally:
        if operations is not None:
            operations.close()
        if operator is not None:
            operator.close()
        workers.stop()
        if ledger is not None:
            ledger.close()
        stop_all(enclaves)


def _setup(config: Config, bundles: Sequence[Path], trusted: Sequence[OwnerPublicKey], *, alone: bool) -> Setup:
    if not alone:
        return Setup(config=config, enclaves=len(bundles), counts=bool(config.operations.metrics))
    watched = msgspec.structs.replace(config.operations, metrics="")  # what it counts, this server tells
    return Setup(
        config=msgspec.structs.replace(config, operations=watched),
        counts=bool(config.operations.metrics),
        bundles=tuple(str(bundle.absolute()) for bundle in bundles),
        trusted=tuple(key.pem for key in trusted),
        signing_keys=tuple(secrets.token_bytes(_SIGNING_KEY_BYTES) for _ in bundles),
    )
