"""The program of a front worker: `python -m garrison.server.front CONTROL LISTENER`, two descriptors that the server hands on.

It reads HTTP, writes it, and charges budgets; models run in the enclaves that all front workers share. It ends when the server
tells it to, and with the server. SIGTERM to it alone ends it gracefully, and the server starts another.
"""

from __future__ import annotations

import logging
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from garrison.attest.evidence import Evidence
from garrison.crypto.owner import OwnerPublicKey
from garrison.enclave.confine.kernel import PR_SET_PDEATHSIG, prctl
from garrison.enclave.log import write_server_log
from garrison.enclave.memory import share_pools
from garrison.enclave.talk import failure, raised_again
from garrison.errors import FrameError, GarrisonError, UnavailableError
from garrison.server.control import FrontEnd, Line, Listening, Lost, Setup, Stop, Told, Wish
from garrison.server.line import LineEnclave
from garrison.server.root import Assembly, assemble, assemble_enclaves, run

logger = logging.getLogger(__name__)

_COUNT_SECONDS = 1.0


class Front:
    """One front worker.

    Args:
        end: the connection to the server.
        listener: the socket that all front workers take connections from.
    """

    def __init__(self, end: FrontEnd, listener: socket.socket) -> None:
        self._end = end
        self._listener = listener
        self._enclaves: list[LineEnclave] = []
        self._asking = threading.Lock()
        self._told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self._seconds = 0.0

    def run(self) -> None:
        """Serve until told to stop.

        Raises:
            FrameError: the server has gone, or says what it must not.
        """
        setup, _ = self._end.receive()
        if not isinstance(setup, Setup):
            raise FrameError("the server must begin with what is to be served")
        self._seconds = setup.config.limits.enclave_seconds
        try:
            assembly = self._assemble(setup)
        except GarrisonError as error:
            self._end.send(failure(error))
            return
        if setup.counts:
            threading.Thread(target=self._count, args=(assembly,), name="garrison-count", daemon=True).start()
        cards = tuple(enclave.card for enclave in assembly.enclaves)
        run(assembly, lambda _: self._end.send(Listening(cards)), self._listener, self._attend)

    def _assemble(self, setup: Setup) -> Assembly:
        if not setup.enclaves:
            trusted = [OwnerPublicKey.from_pem(pem) for pem in setup.trusted]
            return assemble(setup.config, [Path(name) for name in setup.bundles], trusted, setup.signing_keys)
        for k in range(setup.enclaves):
            line, pipe = self._end.receive()
            if not isinstance(line, Line) or pipe is None or line.enclave != k:
                raise FrameError("the server must send a pipe to each enclave")
            self._enclaves.append(self._enclave(line, pipe, setup))
        return assemble_enclaves(setup.config, self._enclaves)

    def _enclave(self, line: Line, pipe: socket.socket, setup: Setup) -> LineEnclave:
        def lost(key: bytes, hung: bool) -> None:  # noqa: FBT001  a callback
            with suppress(FrameError):  # then the server has gone, and we end
                self._end.send(Lost(line.enclave, key, hung))

        def evidence(nonce: bytes) -> Evidence:
            return self._evidence(line.enclave, nonce)

        return LineEnclave(line.card, pipe, setup.config.limits, lost, evidence)

    def _evidence(self, enclave: int, nonce: bytes) -> Evidence:
        with self._asking:
            self._end.send(Wish(enclave, nonce))
            try:
                while (told := self._told.get(timeout=self._seconds)).nonce != nonce:
                    pass  # came too late for somebody before
            except queue.Empty as error:
                raise UnavailableError("the enclave does not answer; try again") from error
        if told.failed is not None:
            raise raised_again(told.failed)
        if told.evidence is None:
            raise UnavailableError("the server has no evidence to show; try again")
        return told.evidence

    def _count(self, assembly: Assembly) -> None:
        """Tell the server what this worker has counted, until it has gone."""
        with suppress(FrameError):
            while True:
                self._end.send(assembly.rsgi.counted())
                time.sleep(_COUNT_SECONDS)

    def _attend(self, stop: Callable[[], None]) -> None:
        threading.Thread(target=self._listen, args=(stop,), name="garrison-front", daemon=True).start()

    def _listen(self, stop: Callable[[], None]) -> None:
        """Do what the server says until it has gone; after it said stop too, as what is written down last may need evidence."""
        told_to_stop = False
        try:
            while True:
                message, pipe = self._end.receive()
                match message:
                    case Line(k, card) if pipe is not None and k < len(self._enclaves):
                        self._enclaves[k].renew(card, pipe)
                    case Told():
                        self._told.put(message)
                    case Stop() if not told_to_stop:
                        told_to_stop = True
                        stop()
                    case _:
                        raise FrameError("the server says what it must not")
        except FrameError as error:
            if not told_to_stop:
                logger.warning("the server has gone: %s", error)
        finally:
            if not told_to_stop:
                stop()


def main(words: Sequence[str]) -> None:
    """The program."""
    share_pools()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # where the server had died before, the connection says so
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is served, when it means to read the keys again
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it reaches the server too, which tells us
    write_server_log(text="%(asctime)s %(levelname)s %(name)s [%(process)d]: %(message)s")
    control, listener = (socket.socket(fileno=int(word)) for word in words)
    try:
        Front(FrontEnd(control), listener).run()
    except FrameError as error:
        logger.debug("the front worker ends: %s", error)


if __name__ == "__main__":
    main(sys.argv[1:])
