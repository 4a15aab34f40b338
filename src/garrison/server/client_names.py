"""Client certificates that name callers: TLS is ended here, and its bytes go on to the web server over this machine's loopback.

The web server ends TLS faster, but does not tell an application whose certificate a connection showed (adr/0014). So each connection gets an inner one, from a source
address in 127.0.0.0/8 that is used once in sixteen million connections; the application looks up that address here, in the same process. Nothing is read or
changed in what passes, so no header can claim a name.

Invariants: an inner connection that we did not make has no name, and gets nothing but what is open to all; a name is known before the first byte goes in, and forgotten
before the connection is closed; neither side can make us hold more than `_MOST_BUFFERED` of what the other does not read.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import socket
import ssl
from typing import Any

from garrison.server.tls import Certificates

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[!-~]{1,200}")
_MOST_BUFFERED = 256 * 1024
_ADDRESSES = 2**24 - 2
_COMMON_NAME, _URI = "commonName", "URI"
LOOPBACK = "127.0.0.1"


class NamedConnections:
    """Who is behind which inner connection. To be used on one event loop."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._numbers = itertools.count(secrets.randbelow(_ADDRESSES))
        self._server: asyncio.Server | None = None
        self._open: set[_Outer] = set()

    def name_of(self, peer: str) -> str | None:
        """The name in the certificate of the client behind a connection; None for one that did not come through here.

        Args:
            peer: "address:port", of the inner connection.
        """
        return self._names.get(peer)

    async def start(self, listener: socket.socket, tls: Certificates, inner: tuple[str, int], seconds: float) -> None:
        """Take connections from a socket that listens already.

        Args:
            inner: where the web server listens.
            seconds: time for a client to finish the handshake.

        Raises:
            ConfigError: the certificates cannot be used.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Outer(self, inner), sock=listener, ssl=tls.context(), ssl_handshake_timeout=seconds
        )

    def stop(self) -> None:
        """Take no more connections."""
        if self._server is not None:
            self._server.close()

    def close(self) -> None:
        """End all connections."""
        self.stop()
        for outer in list(self._open):
            outer.end()

    async def connect(self, outer: _Outer, name: str, inner: tuple[str, int]) -> None:
        """Make the inner connection of an outer one."""
        loop = asyncio.get_running_loop()
        ours = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            ours.setblocking(False)  # noqa: FBT003
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = next(self._numbers) % _ADDRESSES + 1
            ours.bind((f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0))
            await loop.sock_connect(ours, inner)
            address, port = ours.getsockname()[:2]
            peer = f"{address}:{port}"
            self._names[peer] = name
            try:
                await loop.create_connection(lambda: _Inner(self, outer, peer), sock=ours)
            except BaseException:
                self.forget(peer)
                raise
        except BaseException:
            ours.close()
            raise

    def forget(self, peer: str) -> None:
        self._names.pop(peer, None)

    def note(self, outer: _Outer, *, is_open: bool) -> None:
        if is_open:
            self._open.add(outer)
        else:
            self._open.discard(outer)


class _Half(asyncio.Protocol):
    """One side of a connection; what it reads goes to the other one."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Half | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        if self.transport is not None:
            self.transport.set_write_buffer_limits(high=_MOST_BUFFERED)

    def data_received(self, data: bytes) -> None:
        other = self.other
        if other is not None and other.transport is not None:
            other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        other, self.other = self.other, None
        if other is not None and other.transport is not None:
            other.end()

    def end(self) -> None:
        """Close once all is written."""
        if self.transport is not None:
            self.transport.close()


class _Outer(_Half):
    """To the client, over TLS. Reads nothing before the inner connection stands."""

    def __init__(self, connections: NamedConnections, inner: tuple[str, int]) -> None:
        super().__init__()
        self._connections = connections
        self._inner = inner
        self._task: asyncio.Task[None] | None = None
        self.early = b""
        """What came before the inner connection stood."""

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early += data
        else:
            super().data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        secured: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        name = name_in(secured.getpeercert() if secured is not None else None)
        if self.transport is None or name is None:
            logger.warning("a client certificate names nobody: expected one common name, or one URI")
            transport.close()
            return
        self.transport.pause_reading()
        self._connections.note(self, is_open=True)
        self._task = asyncio.get_running_loop().create_task(self._connect(name))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.note(self, is_open=False)
        self.transport = None
        super().connection_lost(exc)

    async def _connect(self, name: str) -> None:
        try:
            await self._connections.connect(self, name, self._inner)
        except OSError as error:
            logger.warning("the web server takes no connection: %s", error)
            self.end()


class _Inner(_Half):
    """To the web server."""

    def __init__(self, connections: NamedConnections, outer: _Outer, peer: str) -> None:
        super().__init__()
        self._connections = connections
        self._outer = outer
        self._peer = peer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._outer.transport is None:  # it has gone meanwhile
            self.end()
            return
        self.other, self._outer.other = self._outer, self
        if self.transport is not None and self._outer.early:
            self.transport.write(self._outer.early)
        self._outer.transport.resume_reading()

    def end(self) -> None:
        self._connections.forget(self._peer)
        super().end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.forget(self._peer)
        super().connection_lost(exc)


def name_in(certificate: Any) -> str | None:
    """Whom a verified certificate names: its one URI among the alternative names, else its one common name; None where there is none or several.

    Args:
        certificate: as `ssl.SSLSocket.getpeercert` gives it.
    """
    if not certificate:
        return None
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == _URI]
    names = [value for part in certificate.get("subject", ()) for kind, value in part if kind == _COMMON_NAME]
    found = uris or names
    return found[0] if len(found) == 1 and _NAME.fullmatch(found[0]) else None
