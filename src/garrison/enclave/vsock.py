"""AF_VSOCK between a Nitro enclave and its parent instance (vsock(7)): addresses, connecting, listening, and errors that say what is missing.

An address is the enclave's context id and a port, "16:5005". NOT RUN ON HARDWARE.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket

from garrison.enclave.confine.step import Step
from garrison.errors import ConfigError, IsolationError

DEFAULT_PORT = 5005
LEAST_CID = 3
"""Smaller ones name the hypervisor, this machine, and the host."""
CONNECT_SECONDS = 5.0
MOST_NUMBER = 2**32 - 2
"""One more means "any"."""
_BUFFER_BYTES = 1 << 20
_ADDRESS = re.compile(r"(\d{1,10}):(\d{1,10})", re.ASCII)
_ABSENT = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.ENODEV, errno.ETIMEDOUT, errno.EHOSTUNREACH})
_MEND = "expected Linux on an instance that was launched with enclaves enabled, or the inside of an enclave"


def parse_address(text: str) -> tuple[int, int]:
    """Context id and port of "16:5005".

    Raises:
        ConfigError: no such address.
    """
    found = _ADDRESS.fullmatch(text)
    cid, port = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (LEAST_CID <= cid <= MOST_NUMBER and 0 < port <= MOST_NUMBER):
        raise ConfigError(
            f"expected the enclave's address as CID:PORT, such as 16:{DEFAULT_PORT}, found {text!r}; "
            "`nitro-cli describe-enclaves` tells the CID"
        )
    return cid, port


def dial(cid: int, port: int) -> socket.socket:
    """A connection to an enclave.

    Raises:
        IsolationError: this machine has no vsock, or nothing listens there.
    """
    connection = _socket()
    try:
        connection.settimeout(CONNECT_SECONDS)
        connection.connect((cid, port))
        connection.settimeout(None)
    except OSError as error:
        connection.close()
        absent = isinstance(error, TimeoutError) or error.errno in _ABSENT
        why = "nothing answers there; is the enclave running with this --enclave-cid?" if absent else error.strerror
        raise IsolationError(f"no enclave at vsock {cid}:{port}: {why}") from error
    return plain(connection)


def listen(port: int) -> socket.socket:
    """Listens inside an enclave, for whoever is on the parent instance.

    Raises:
        IsolationError: there is no vsock, or the port is taken.
    """
    listener = _socket()
    try:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise IsolationError(f"cannot listen at vsock port {port}: {error.strerror}") from error
    return listener


def plain(connection: socket.socket) -> socket.socket:
    """The same connection, of a family of which Python sets every option; takes the place of the one that is given.

    On a socket that it knows to be of AF_VSOCK, Python sets none but numbers of 64 bits, and so no time limit.
    """
    if connection.family != getattr(socket, "AF_VSOCK", None):
        return connection
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=connection.detach())


def look() -> Step:
    """Whether this machine has vsock, found by trying."""
    try:
        _socket().close()
    except IsolationError as error:
        return Step("vsock", "", str(error))
    return Step("vsock", "AF_VSOCK")


def _socket() -> socket.socket:
    family = getattr(socket, "AF_VSOCK", None)
    if family is None:
        raise IsolationError(f"this system's Python knows no vsock; {_MEND}")
    try:
        found = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise IsolationError(f"this machine has no vsock ({error.strerror}); {_MEND}") from error
    for option in (socket.SO_VM_SOCKETS_BUFFER_MAX_SIZE, socket.SO_VM_SOCKETS_BUFFER_SIZE):
        with contextlib.suppress(OSError):  # only faster
            found.setsockopt(family, option, _BUFFER_BYTES)
    return found
