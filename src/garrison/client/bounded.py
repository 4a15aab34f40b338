"""A transport for the synchronous client with one bound in time for a request and its answer's head: httpx itself bounds each read and write alone, so that a
server that sends, or takes, a byte now and then would be waited for for ever. (The asynchronous client has `asyncio.timeout`.)
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

_PART_BYTES = 256 * 1024
"""What is sent between two looks at the clock."""


class Deadline(threading.local):
    """When each thread gives up, by `time.monotonic`; None for never."""

    at: float | None = None

    def bounded(
        self, seconds: float | None, late: type[httpcore.TimeoutException] = httpcore.ReadTimeout
    ) -> float | None:
        """The lesser of a time-out and what is left.

        Raises:
            httpcore.TimeoutException: of the kind `late`: nothing is left.
        """
        if self.at is None:
            return seconds
        left = self.at - time.monotonic()
        if left <= 0:
            raise late("there was not time enough")
        return left if seconds is None else min(seconds, left)


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.bounded(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for first in range(0, len(buffer), _PART_BYTES):
            left = self._deadline.bounded(timeout, httpcore.WriteTimeout)
            self._stream.write(buffer[first : first + _PART_BYTES], left)

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, *given: Any, **more: Any) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(*given, **more), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, deadline: Deadline) -> None:
        self._inner, self._deadline = httpcore.SyncBackend(), deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        found = self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(found, self._deadline)


def trusting(tls: ssl.SSLContext | None) -> ssl.SSLContext:
    """What https is checked by: as given, or else by the system's authorities, or those that SSL_CERT_FILE and SSL_CERT_DIR name (httpx alone brings its own)."""
    return ssl.create_default_context() if tls is None else tls


class BoundedTransport(httpx.HTTPTransport):
    """httpx's own transport, whose reads and writes end at the deadline too.

    Args:
        deadline: to be set before each request.
        tls: for HTTPS; None for the system's authorities.
    """

    def __init__(self, deadline: Deadline, tls: ssl.SSLContext | None = None) -> None:
        # httpx's own beginning makes nothing but a pool, whose connections could not be bounded.
        self._pool = httpcore.ConnectionPool(
            ssl_context=trusting(tls),
            max_connections=_LIMITS.max_connections,
            max_keepalive_connections=_LIMITS.max_keepalive_connections,
            keepalive_expiry=_LIMITS.keepalive_expiry,
            network_backend=_Backend(deadline),
        )


_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=5.0)
"""httpx's own."""
