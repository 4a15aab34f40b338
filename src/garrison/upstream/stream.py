"""Sends and receives on a socket that does not block, until a deadline. It waits only where it must: a system call less for most exchanges
than a socket with a timeout takes, and one deadline for many of them.
"""

from __future__ import annotations

import select
import socket
import ssl
import time

READ_BYTES = 256 * 1024


def after(seconds: float) -> float:
    """The deadline in so many seconds."""
    return time.monotonic() + seconds


def left(deadline: float) -> float:
    """Seconds until a deadline.

    Raises:
        TimeoutError: it has passed.
    """
    found = deadline - time.monotonic()
    if found <= 0:
        raise TimeoutError("the deadline has passed")
    return found


def send(stream: socket.socket, data: bytes, deadline: float) -> None:
    """All of the data.

    Raises:
        TimeoutError: not by the deadline.
        OSError: the connection has ended.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[stream.send(rest) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            _wait(stream, select.POLLOUT, deadline)
        except ssl.SSLWantReadError:
            _wait(stream, select.POLLIN, deadline)


def arrivals_at(stream: socket.socket) -> select.poll:
    """What `receive` waits on; made once a connection."""
    found = select.poll()
    found.register(stream, select.POLLIN)
    return found


def receive(stream: socket.socket, arrivals: select.poll, deadline: float) -> bytes:
    """What comes next; empty at the connection's end.

    Raises:
        TimeoutError: nothing comes by the deadline.
        OSError: the connection has ended.
    """
    # Of TLS there may be something left that has been read already.
    if not isinstance(stream, ssl.SSLSocket) and not arrivals.poll(left(deadline) * 1000):
        raise TimeoutError("the deadline has passed")
    while True:
        try:
            return stream.recv(READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            _wait(stream, select.POLLIN, deadline)
        except ssl.SSLWantWriteError:
            _wait(stream, select.POLLOUT, deadline)


def _wait(stream: socket.socket, what: int, deadline: float) -> None:
    waiting = select.poll()
    waiting.register(stream, what)
    if not waiting.poll(left(deadline) * 1000):
        raise TimeoutError("the deadline has passed")
