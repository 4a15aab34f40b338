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
    7  the service: fresh keys, the model is loaded     without root's rights; the runtime uses /proc/self, which 8 closes
    8  not dumpable                                     a change of user would undo it, so it comes after 5
    9  Landlock                                         nothing is opened from here on
    10 seccomp                                          last: it forbids all the steps before
    11 one row is answered                              so that whatever a step forbids too much stops the start, not the service

Invariants: nothing that a client sent is read before step 10; keys never leave; what was achieved is looked up, not assumed, and goes
out with the card. The process is not dumpable from its first line on, but for step 7; while that lasts, others of its own user could
read it. That is nobody, unless an ordinary user started it. Imports no torch, no onnx, no web framework.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from garrison.attest.evidence import Evidence
from garrison.bundle.reader import verify
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
from garrison.enclave.quotes.sim import SimQuoter, source_measurement
from garrison.enclave.service import Service
from garrison.enclave.talk import (
    FROM_HOST,
    MOST_START_BYTES,
    Answered,
    Attest,
    Attested,
    Call,
    FromHost,
    FromWorker,
    Ready,
    Start,
    failure,
)
from garrison.errors import FrameError, GarrisonError, IsolationError, RefusedError, RequestError
from garrison.guard.defenses import DEFENSES
from garrison.protocol.frames import Channel
from garrison.protocol.messages import Ask, Reply
from garrison.runtime.runner import example_inputs

logger = logging.getLogger(__name__)


class Worker:
    """A confined service and what it was found to have.

    Args:
        start: the host's first message.
    """

    def __init__(self, start: Start) -> None:
        steps = [secret_heap.memory_is_secret()]
        quoter = SimQuoter()
        # 3 the bundle is opened and verified
        bundle = verify(Path(start.bundle), [OwnerPublicKey.from_pem(pem) for pem in start.trusted], start.limits)
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
            limits=start.limits,
            quoter=quoter,
            parameter_memory=start.parameter_memory,
        )
        # 8 not dumpable
        steps.append(not_dumpable())
        # 9 Landlock
        steps += [one_thread(), lock_paths()]
        # 10 seccomp
        steps.append(filter_calls())
        # 11 one row is answered
        with contextlib.suppress(RequestError, RefusedError):
            self._service.predict(example_inputs(bundle.manifest.inputs, 1))
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
            case _:
                raise FrameError("the host starts an enclave twice")

    def answer_batch(self, asks: Sequence[Ask]) -> list[Reply]:
        return self._service.answer(asks)

    def _evidence(self, nonce: bytes) -> Evidence:
        return self._service.evidence(nonce, self.capabilities)


def serve(connection: socket.socket, others: Sequence[socket.socket] = ()) -> None:
    """Start, then answer until the host has gone.

    Args:
        connection: the host's.
        others: the front workers'.
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
        worker = Worker(start)
    except GarrisonError as error:
        first.send(failure(error))
        return
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
    write_log()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            number, signal.SIG_IGN
        )  # whoever stops the whole service lets the host finish first; it closes the pipe
    not_dumpable()  # whoever may attach now could stay attached
    descriptors = [int(word) for word in sys.argv[1:]]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # noqa: FBT003
    connection, *others = (socket.socket(fileno=descriptor) for descriptor in descriptors)
    try:
        serve(connection, others)
    except FrameError as error:
        logger.debug("the enclave ends: %s", error)


def _warm_up() -> None:
    """Load now what Python and its libraries would load at first use, when no file can be opened any more."""
    for place in DEFENSES.values():
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
