"""`--isolation nitro`: the inner program runs in an AWS Nitro enclave beside this machine, and the server talks to it over vsock.

The operator starts the enclave (`enclave/quotes/garrison.nitro.Dockerfile`, `nitro-cli run-enclave`); the server connects to
`--enclave CID:PORT`, hands the bundle's files in, and asks. There are no shared memory, no shared files and no inherited descriptors.
Evidence is made inside. When the connection ends, the server connects again, at which the enclave starts a program with
fresh keys; an enclave that was ended as a whole must be run again by the operator, and the server finds it then.

What this machine still holds: the misinformation key, which the server reads and hands over the connection as with `--isolation process`;
the bundle; budgets; and every plain request.

NOT RUN ON HARDWARE: tested with AF_UNIX in place of AF_VSOCK, a stand-in for the security module, and a public key infrastructure of the
tests' own.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable

import msgspec

from garrison.enclave.backends.process import ProcessEnclave
from garrison.enclave.delivery import Welcome, be_welcomed, host_end, send_bundle
from garrison.enclave.host import Launch, ServiceCard
from garrison.enclave.levels import HARDWARE
from garrison.enclave.program import Program
from garrison.enclave.vsock import dial, parse_address
from garrison.errors import ConfigError, FrameError, IsolationError

TECHNOLOGY = "nitro"


class Link:
    """A connection in place of a process: it lives while the other side keeps it."""

    pid = 0

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._descriptor = os.dup(connection.fileno())  # stays good when the conversation closes its own

    def __del__(self) -> None:
        os.close(self._descriptor)

    def poll(self) -> int | None:
        return 0 if self._gone(0.0) else None

    def wait(self, timeout: float | None = None) -> int:
        if not self._gone(timeout):
            raise subprocess.TimeoutExpired(TECHNOLOGY, timeout or 0.0)
        return 0

    def _gone(self, seconds: float | None) -> bool:
        """Whether the other side has gone, or goes within that time. Several threads ask at once."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLRDHUP)
        return bool(poll.poll(None if seconds is None else seconds * 1000.0))

    def kill(self) -> None:
        """End the connection; the enclave ends its program then."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class Nitro(ProcessEnclave):
    """See the module's docstring.

    Args:
        connect: to the enclave; by vsock to the address in `start` where it is left out.

    Raises:
        ConfigError: no address, or something is asked for that such an enclave does not have.
        IsolationError: there is no vsock, no enclave, one of another version, or one in debug mode.
        GarrisonError: what the inner program said of the bundle, the guard or the key.
    """

    keeps_spare = False
    """The enclave itself keeps one, for all servers."""

    def __init__(self, start: Launch, connect: Callable[[], socket.socket] | None = None) -> None:
        if start.secret_heap_bytes or start.lines:
            raise ConfigError(
                "--isolation nitro has no secret heap (--secret-heap) and takes one server process (--workers)"
            )
        if connect is None:
            cid, port = parse_address(start.address)
            self._connect: Callable[[], socket.socket] = lambda: dial(cid, port)
        else:
            self._connect = connect
        self._welcome: Welcome | None = None
        super().__init__(start)

    def _program(self) -> Program:
        connection = self._connect()
        try:
            channel = host_end(connection)
            self._welcome = be_welcomed(channel)
            self._check_debug(self._welcome)
            send_bundle(channel, self._start.bundle)
        except FrameError as error:
            connection.close()
            raise IsolationError(
                f"what listens at the enclave's address does not answer as one of ours: {error}"
            ) from error
        except BaseException:
            connection.close()
            raise
        nothing = threading.Thread(target=bool, name="garrison-no-log", daemon=True)
        nothing.start()  # an enclave shows its log to nobody, but in debug mode
        return Program(Link(connection), connection, nothing)

    def _check_debug(self, welcome: Welcome) -> None:
        if welcome.debug and self._start.require == HARDWARE:
            raise IsolationError(
                f"{HARDWARE!r} is required, and the enclave runs in debug mode (PCR0 is all zero): run it without --debug-mode"
            )

    def _vouched(self, card: ServiceCard) -> ServiceCard:
        """The card, with what the enclave said when it was connected to."""
        if card.technology != TECHNOLOGY or self._welcome is None:
            raise IsolationError(f"expected an enclave with evidence of {TECHNOLOGY!r}, found {card.technology!r}")
        welcome = self._welcome
        said = {"security-module": welcome.module, "measured": "" if welcome.debug else f"PCR0 {welcome.measurement}"}
        name = f"{TECHNOLOGY} in debug mode" if welcome.debug else TECHNOLOGY
        return msgspec.structs.replace(
            card, isolation=f"{name}, {card.isolation}", capabilities=card.capabilities | said
        )
