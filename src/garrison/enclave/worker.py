"""The inner program of an enclave in its own process: `python -m garrison.enclave.worker DESCRIPTOR...`: the pipe
of the host that starts it, and one for each front worker (`garrison.enclave.lines`).

It gives up what it does not need, in this order, and then answers:

    0  (--secret-heap) the heap lies in secret memory, before Python begins
    1  every library is loaded                          their files may be unreadable to the user of step 5
    2  the start message                                a spare waits here, so that another start takes less time
    3  the bundle is opened and verified                so may it be
    4  a network and IPC namespace of its own           takes root; else a user namespace, which is made after 5
    5  a user of its own, and no capability             reading libraries and bundle may take root's rights
    6  no core file, no new privileges                  9 and 10 want the latter
    7  the service: fresh keys, the model is loaded,    without root's rights; the runtime uses /proc/self, which 8 closes
       and a drill (`garrison.enclave.drill`)           all that Python loads at first use is loaded now
    8  not dumpable                                     a change of user would undo it, so it comes after 5
    9  Landlock                                         nothing is opened from here on
    10 seccomp                                          last: it forbids all the steps before
    11 every kind of answer and refusal, once more      so that whatever a step forbids too much stops the start, not the service

Invariants: nothing that a client sent is read before step 10; keys never leave; what was achieved is looked up, not assumed, and goes
out with the card. The process is not dumpable from its first line on, but for step 7; while that lasts, others of its own user could
read it. That is nobody, unless an ordinary user started it. Imports no torch, no onnx, no web framework.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from garrison.attest.evidence import Evidence
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.crypto.owner import OwnerPublicKey
from garrison.enclave import secret_heap
from garrison.enclave.card import service_card
from garrison.enclave.confine.landlock import lock_paths
from garrison.enclave.confine.leave import leave_surroundings
from garrison.enclave.confine.one_thread import one_thread
from garrison.enclave.confine.readers import no_core, no_new_privileges, not_dumpable, open_own_files
from garrison.enclave.confine.seccomp import filter_calls
from garrison.enclave.levels import isolation_name
from garrison.enclave.lines import Lines, Pipe
from garrison.enclave.log import write_log
from garrison.enclave.memory import settle
from garrison.enclave.quotes import Quoter
from garrison.enclave.quotes.sim import SimQuoter, source_measurement
from garrison.enclave.service import Service
from garrison.enclave.talk import (
    FROM_HOST,
    MOST_START_BYTES,
    Answered,
    AskDrift,
    Attest,
    Attested,
    Call,
    Clear,
    Cleared,
    DriftTold,
    FromHost,
    FromWorker,
    List,
    Listed,
    Ready,
    Resume,
    Resumed,
    Start,
    Take,
    Taken,
    Witness,
    Witnessed,
    failure,
)
from garrison.errors import FrameError, GarrisonError, IsolationError
from garrison.guard.defenses import DEFENSES
from garrison.guard.detectors import DETECTORS
from garrison.protocol.frames import Channel
from garrison.protocol.messages import Ask, Reply

logger = logging.getLogger(__name__)

Opener = Callable[[Start], VerifiedBundle]


class Worker:
    """A confined service and what it was found to have.

    Args:
        start: the host's first message.
        quoter: asks the hardware; None for simulated quotes.
        opened: step 3; None for the folder that the host names.
    """

    def __init__(self, start: Start, quoter: Quoter | None = None, opened: Opener | None = None) -> None:
        steps = [secret_heap.memory_is_secret()]
        quoter = SimQuoter() if quoter is None else quoter
        # 3 the bundle is opened and verified
        bundle = (opened or open_bundle)(start)
        # 4 a network and IPC namespace of its own
        # 5 a user of its own, and no capability
        steps += leave_surroundings(start.user)
        # 6 no core file, no new privileges
        steps += [no_core(), no_new_privileges()]
        # 7 the service: fresh keys, the model is loaded
        open_own_files()
        self._service = Service(
            bundle,
            key=start.key,
            tightened=start.tightened,
            callers=start.callers,
            limits=start.limits,
            quoter=quoter,
            parameter_memory=start.parameter_memory,
        )
        self._service.drill()
        # 8 not dumpable
        steps.append(not_dumpable())
        # 9 Landlock
        steps += [one_thread(), lock_paths()]
        self._service.load_ahead()  # a thread, under Landlock as the one that starts it; seccomp then takes both
        # 10 seccomp
        steps.append(filter_calls())
        # 11 every kind of answer and refusal
        self._service.drill()
        self.capabilities = {step.name: step.how for step in steps}
        self._mend = {step.name: step.mend for step in steps if not step.achieved}
        self._technology = quoter.technology

    def ready(self) -> Ready:
        isolation = isolation_name(self.capabilities)
        card = service_card(self._service, isolation, technology=self._technology, capabilities=self.capabilities)
        return Ready(card, self._mend)

    def answer(self, message: FromHost) -> FromWorker:
        """The answer to one message of the host.

        Raises:
            FrameError: a second start.
        """
        match message:
            case Call(asks):
                return Answered(self.answer_batch(asks))
            case Attest(nonce):
                return Attested(self._evidence(nonce))
            case Resume(snapshot, key):
                self._service.caller_state.resume(snapshot, key)
                return Resumed()
            case Take():
                return Taken(self._service.caller_state.take())
            case List():
                return Listed(self._service.alarms())
            case Clear(caller):
                return Cleared(self._service.clear_alarm(caller))
            case AskDrift():
                return DriftTold(self._service.drift())
            case Witness(ledger, at, head, start, bodies):
                return Witnessed(self._service.witness.sign(ledger, at, head, start, bodies))
            case _:
                raise FrameError("the host starts an enclave twice")

    def answer_batch(self, asks: Sequence[Ask]) -> list[Reply]:
        return self._service.answer(asks)

    def _evidence(self, nonce: bytes) -> Evidence:
        return self._service.evidence(nonce, self.capabilities)


def open_bundle(start: Start) -> VerifiedBundle:
    """The bundle of a start message, verified.

    Raises:
        BundleError: it must not be used.
    """
    return verify(Path(start.bundle), [OwnerPublicKey.from_pem(pem) for pem in start.trusted], start.limits)


def serve(
    connection: socket.socket,
    others: Sequence[socket.socket] = (),
    *,
    quoter: Quoter | None = None,
    opened: Opener | None = None,
) -> None:
    """Start, then answer until the host has gone.

    Args:
        connection: the host's.
        others: the front workers'.
        quoter, opened: see `Worker`.
    """
    # 1 every library is loaded
    _warm_up()
    lines = Lines(connection, others)
    # 2 the start message
    first: Pipe = Channel(connection, FROM_HOST, most_sent=MOST_START_BYTES, most_received=MOST_START_BYTES)
    start = first.receive()
    if not isinstance(start, Start):
        raise FrameError("the host must begin with a start message")
    try:
        worker = Worker(start, quoter, opened)
    except GarrisonError as error:
        first.send(failure(error))
        return
    settle()
    first.send(worker.ready())
    try:
        lines.serve(worker, start.limits)
    except FrameError:
        raise
    except Exception:  # Python itself would write the message into the host's log
        logger.exception("the enclave fails and ends")
        sys.exit(1)


def main() -> None:
    """The program. Ends quietly when its host has gone."""
    connection, *others = prepare(sys.argv[1:])
    try:
        serve(connection, others)
    except FrameError as error:
        logger.debug("the enclave ends: %s", error)


def prepare(descriptors: Sequence[str]) -> list[socket.socket]:
    """What an inner program does first. Gives the sockets of the descriptors that it was started with."""
    write_log()
    for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(
            ending, signal.SIG_IGN
        )  # whoever stops the whole service lets the host finish first; it closes the pipe
    not_dumpable()  # whoever may attach now could stay attached
    numbers = [int(word) for word in descriptors]
    for number in numbers:
        os.set_inheritable(number, False)  # noqa: FBT003
    return [socket.socket(fileno=number) for number in numbers]


def _warm_up() -> None:
    """Load now what Python and its libraries would load at first use, when no file can be opened any more."""
    for place in (*DEFENSES.values(), *DETECTORS.values()):
        importlib.import_module(place.partition(":")[0])
    np.random.default_rng(0)
    np.unique(np.zeros(1))  # loads numpy.ma, which a refusal takes
    time.localtime()
    source_measurement()
    try:
        raise IsolationError("warm-up")
    except IsolationError:
        traceback.format_exc()


if __name__ == "__main__":
    main()
