"""Ends connections whose TLS handshake does not come to an end: the web server waits for it without a limit, so that a few idle clients could use up all connections.

It looks at the process's own sockets now and then. A connection that has brought a request has finished its handshake; one that is old enough and has brought none is shut down.
(Where the handshake is finished and no request comes, the web server's own time limit ends it before.) Works on Linux, where a process can list what it has open.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_OPEN = Path("/proc/self/fd")
_LONGEST_REQUEST_SECONDS = 300.0


class HalfOpen:
    """See the module's docstring.

    Args:
        port: where the web server listens.
        seconds: time for a handshake and the first request.
        clock: seconds that only grow.
    """

    def __init__(self, port: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._seconds = seconds
        self._clock = clock
        self._next = 0.0
        self._born: dict[tuple[str, int], float] = {}
        self._asked: dict[str, float] = {}

    def note(self, peer: str) -> None:
        """A peer ("address:port") has brought a request. For the event loop; costs next to nothing."""
        self._asked[peer] = self._clock()

    def sweep(self) -> None:
        """Shut down what is too old. For a thread that may take some milliseconds; returns at once where it is not time yet."""
        now = self._clock()
        if now < self._next or not _OPEN.is_dir():
            return
        self._next = now + self._seconds / 4
        asked = list(self._asked)
        born: dict[tuple[str, int], float] = {}
        ended = 0
        for connection, peer in self._connections():
            mark = peer, os.fstat(connection.fileno()).st_ino  # the same peer may come again from the same port
            since = born[mark] = self._born.get(mark, now)
            if now - since > self._patience(peer, since):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                ended += 1
        self._born = born
        there = {peer for peer, _ in born}
        for peer in asked:
            if peer not in there:  # gone; who came while we looked stays
                self._asked.pop(peer, None)
        if ended:
            logger.warning("%d connections were ended that had brought no request within %g s", ended, self._seconds)

    def _patience(self, peer: str, since: float) -> float:
        """How old a connection may become that was first seen at `since`."""
        asked = self._asked.get(peer, -math.inf)
        if asked >= since:
            return math.inf
        # A request just before may be this connection's first, or an older one's from the same port.
        return _LONGEST_REQUEST_SECONDS + self._seconds if asked >= since - self._seconds else self._seconds

    def _connections(self) -> Iterator[tuple[socket.socket, str]]:
        try:
            names = os.listdir(_OPEN)  # noqa: PTH208  many, and only their names
        except OSError as error:  # no descriptor is left for it: the next look will do
            logger.warning("connections cannot be looked at just now: %s", error.strerror)
            return
        for name in names:
            connection = _connection(int(name))
            if connection is None:
                continue
            with connection:
                try:
                    if connection.getsockname()[1] == self._port:
                        host, port = connection.getpeername()[:2]
                        yield connection, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                except (OSError, IndexError):  # it listens, or has gone
                    continue


def _connection(descriptor: int) -> socket.socket | None:
    """A second handle on a socket of ours; None for anything else."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        found = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return None
    if found.family in {socket.AF_INET, socket.AF_INET6} and found.type == socket.SOCK_STREAM:
        return found
    found.close()
    return None
