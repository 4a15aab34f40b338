"""The first program of a Nitro enclave: `python -m garrison.enclave.doorkeeper [--port PORT] [--allow-debug]`.

Listens for the parent instance and starts a confined program (`garrison.enclave.guest`) for each connection, with fresh keys; so a
server that starts its enclave anew does no more than connect again. The confined program opens no device: its wishes for quotes
come here. Whoever is on the parent instance may connect, as it may start another enclave of the same image; the client's
policy judges owner and model.

Invariants: what comes over a connection is never read here; a program lives no longer than its connection.

NOT RUN ON HARDWARE: tested with AF_UNIX in place of AF_VSOCK, and a stand-in for the security module.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from typing import Protocol

import garrison
from garrison.enclave.delivery import Welcome, guest_end
from garrison.enclave.log import write_log
from garrison.enclave.program import clean_environment, command
from garrison.enclave.quotes import Quoter
from garrison.enclave.quotes.asked import Teller
from garrison.enclave.quotes.nitro import NitroQuoter
from garrison.enclave.talk import failure
from garrison.enclave.vsock import DEFAULT_PORT, listen, plain
from garrison.errors import FrameError, GarrisonError, IsolationError

logger = logging.getLogger(__name__)

GUEST = "garrison.enclave.guest"
MOST_GUESTS = 16
"""Programs at once: one for each model that a server serves, and those that are being ended."""
CONNECTION = b"c"
"""Goes with the descriptor of a connection."""
SPARE_AFTER_SECONDS = 1.0
"""A program that lives this long gets a spare."""
END_SECONDS = 5.0
"""A program whose host has gone ends by itself, once it has finished what it computes."""


class Module(Quoter, Protocol):
    """A security module: quotes, and what it says of this enclave."""

    def measurement(self) -> bytes:
        """PCR0."""
        ...

    def name(self) -> str: ...


class Guest:
    """A program that has loaded its libraries, or is about to, and waits for its connection.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="garrison-")
        self.wishes, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                command(GUEST, str(theirs.fileno()), self.folder),
                env=clean_environment(0),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=os.sep,
                start_new_session=True,
            )

    def end(self, seconds: float) -> None:
        """Wait so long for its end, then kill it."""
        self.wishes.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Doorkeeper:
    """See the module's docstring.

    Args:
        listener: a listening stream socket; closed at the end.
        module: the security module.
        allow_debug: serve although the enclave runs in debug mode, where its host sees its console and all its evidence is void.

    Raises:
        IsolationError: the module does not answer.
    """

    def __init__(self, listener: socket.socket, module: Module, *, allow_debug: bool = False) -> None:
        measurement = module.measurement()
        self._listener, self._module = listener, module
        self._room = threading.BoundedSemaphore(MOST_GUESTS)
        self._attendants: set[threading.Thread] = set()
        self._programs: set[Guest] = set()
        self._lock = threading.Lock()
        self._spare: Guest | None = None
        self._closed = False
        self.welcome = Welcome(
            version=garrison.__version__,
            module=module.name(),
            measurement=measurement.hex(),
            debug=not any(measurement),
        )
        self._serves = allow_debug or not self.welcome.debug

    def run(self) -> None:
        """Serve until the listener is closed."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                logger.info("the door is closed: %s", error.strerror)
                return
            attendant = threading.Thread(target=self._attend, args=(plain(connection),), daemon=True)
            self._attendants.add(attendant)
            attendant.start()

    def close(self) -> None:
        """Let nobody in any more, and end all programs."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            self._closed = True
            spare, self._spare = self._spare, None
        for program in tuple(self._programs):
            program.process.kill()
        if spare is not None:
            spare.end(0.0)
        for attendant in tuple(self._attendants):
            attendant.join(END_SECONDS)

    def _attend(self, connection: socket.socket) -> None:
        """One connection, from its greeting to its end."""
        try:
            if self._greet(connection):
                try:
                    self._keep(connection)
                finally:
                    self._room.release()
        except (FrameError, OSError) as error:
            logger.info("a connection ends: %s", error)
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
            self._attendants.discard(threading.current_thread())

    def _greet(self, connection: socket.socket) -> bool:
        """Whether there is room; it is taken then."""
        channel = guest_end(connection)
        if not self._serves:
            told = "the enclave runs in debug mode (PCR0 is all zero), in which its evidence is void: run it without --debug-mode"
        elif self._room.acquire(blocking=False):
            try:
                channel.send(self.welcome)
            except BaseException:
                self._room.release()
                raise
            return True
        else:
            told = f"{MOST_GUESTS} programs run in the enclave already"
        channel.send(failure(IsolationError(told)))
        return False

    def _keep(self, connection: socket.socket) -> None:
        """Hand the connection to a program, and answer its wishes for quotes until it or the host has gone."""
        program = self._take()
        try:
            socket.send_fds(program.wishes, [CONNECTION], [connection.fileno()])
            self._answer(program, connection)
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # the program reads that its host has gone
            program.end(END_SECONDS)
            self._programs.discard(program)

    def _answer(self, program: Guest, connection: socket.socket) -> None:
        """Until the program, which alone holds the other end of its pipe, or the host has gone."""
        teller = Teller(program.wishes, self._module)
        poll = select.poll()
        poll.register(program.wishes, select.POLLIN)
        poll.register(connection, select.POLLRDHUP)
        seconds: float | None = SPARE_AFTER_SECONDS
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(None if seconds is None else seconds * 1000.0)}
            if connection.fileno() in ready:
                return
            if ready:
                try:
                    teller.answer()
                except FrameError:
                    return
            elif seconds is not None:
                self._keep_spare()
                seconds = None

    def _take(self) -> Guest:
        with self._lock:
            program, self._spare = self._spare, None
            if program is None or program.process.poll() is not None:
                program = Guest()
            self._programs.add(program)
        return program

    def _keep_spare(self) -> None:
        """Have one more program load its libraries, which is most of what a start takes."""
        with self._lock:
            if self._spare is None and not self._closed:
                self._spare = Guest()


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="garrison.enclave.doorkeeper", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="vsock port to listen at")
    parser.add_argument("--allow-debug", action="store_true", help="serve in debug mode: for development only")
    given = parser.parse_args()
    write_log()
    try:
        keeper = Doorkeeper(listen(given.port), NitroQuoter(), allow_debug=given.allow_debug)
    except GarrisonError as error:
        logger.error("%s", error)  # noqa: TRY400
        sys.exit(1)
    logger.info("enclave %s, PCR0 %s", keeper.welcome.module, keeper.welcome.measurement)
    keeper.run()


if __name__ == "__main__":
    main()
