"""Client certificates that name callers: TLS is ended here, and its bytes go on to the web server over this machine's loopback.

The web server ends TLS faster, but does not tell an application whose certificate a connection showed (adr/0014). So each connection gets an inner one, from a source
address in 127.0.0.0/8 that is used once in sixteen million connections; the application looks up that address here, in the same process. Nothing is read or
changed in what passes, so no header can claim a name.

Invariants: an inner connection that we did not make has no name, and gets nothing but what is open to all; a name is known before the first byte goes in, and forgotten
before the connection is closed; neither side can make us hold more than `_MOST_BUFFERED` of what the other does not read; connections are bounded, in number and by name: who
holds many cannot keep others out (`HeldBytes`: one alone gets half, two a third each). Until a certificate is known the same goes for addresses.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
import secrets
import socket
import ssl
import time
from typing import Any

from garrison.errors import UnavailableError
from garrison.server.held import HeldBytes
from garrison.server.http_errors import error_answer
from garrison.server.tls import Certificates

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[!-~]{1,200}")
_MOST_BUFFERED = 256 * 1024
_ADDRESSES = 2**24 - 2
_HANDSHAKES = 1024
"""Most connections that are not admitted (yet): in their handshake, or about to be told that there are too many."""
_REFUSE_SECONDS = 5.0
_PAUSE_SECONDS = 1.0
_TELL_SECONDS = 10.0
_COMMON_NAME, _URI = "commonName", "URI"
LOOPBACK = "127.0.0.1"


class NamedConnections:
    """Who is behind which inner connection. To be used on one event loop."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._numbers = itertools.count(secrets.randbelow(_ADDRESSES))
        self._taking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[_Outer] = set()
        self._shaking = HeldBytes(_HANDSHAKES)
        self._held = HeldBytes(_HANDSHAKES)
        self._told_at = -math.inf

    def name_of(self, peer: str) -> str | None:
        """The name in the certificate of the client behind a connection; None for one that did not come through here.

        Args:
            peer: "address:port", of the inner connection.
        """
        return self._names.get(peer)

    async def start(
        self, listener: socket.socket, tls: Certificates, inner: tuple[str, int], seconds: float, most: int
    ) -> None:
        """Take connections from a socket that listens already.

        Args:
            inner: where the web server listens.
            seconds: time for a client to finish the handshake.
            most: connections at once.

        Raises:
            ConfigError: the certificates cannot be used.
        """
        self._held = HeldBytes(most)
        context = tls.context()
        self._taking = asyncio.get_running_loop().create_task(self._take(listener, context, inner, seconds))

    async def _take(
        self, listener: socket.socket, context: ssl.SSLContext, inner: tuple[str, int], seconds: float
    ) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    connection, address = await loop.sock_accept(listener)
                except OSError as error:
                    self.tell("no connection can be taken just now: %s", error.strerror)
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                try:
                    self._shaking.take(address[0], 1)
                except UnavailableError:  # before a handshake nothing can be said
                    connection.close()
                    self.tell("connections of %s are ended: too many have not shown their certificate yet", address[0])
                    continue
                outer = _Outer(self, inner, address[0])
                task = loop.create_task(_shake(outer, connection, context, seconds))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def admit(self, outer: _Outer, name: str) -> bool:
        """Whether a client who has shown its certificate may stay; then it counts among those of its name."""
        try:
            self._held.take(name, 1)
        except UnavailableError:
            self.tell("connections of %s are refused: it, or all together, have as many as there may be", name)
            return False
        self._open.add(outer)
        self._shaking.give_back(outer.address, 1)
        return True

    def let_go(self, outer: _Outer) -> None:
        """A connection is over, once."""
        if outer in self._open:
            self._open.discard(outer)
            self._held.give_back(outer.name, 1)
        else:
            self._shaking.give_back(outer.address, 1)

    def tell(self, message: str, *words: object) -> None:
        """Into the log, now and then."""
        now = time.monotonic()
        if now - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            logger.warning(message, *words)

    def stop(self) -> None:
        """Take no more connections."""
        if self._taking is not None:
            self._taking.cancel()

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

    def __init__(self, connections: NamedConnections, inner: tuple[str, int], address: str) -> None:
        super().__init__()
        self._connections = connections
        self._inner = inner
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self.refused = False
        self.address, self.name = address, ""
        self.early = b""
        """What came before the inner connection stood."""

    def data_received(self, data: bytes) -> None:
        if self.refused:
            self._say_no()
        elif self.other is None:
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
        self.name = name
        loop = asyncio.get_running_loop()
        if self._connections.admit(self, name):
            self.transport.pause_reading()
            self._task = loop.create_task(self._connect(name))
        else:  # told once it has asked something, as an answer that comes before may be lost
            self.refused = True
            loop.call_later(_REFUSE_SECONDS, self.end)

    def connection_lost(self, exc: Exception | None) -> None:
        self.over()
        self.transport = None
        super().connection_lost(exc)

    def over(self) -> None:
        """It has ended, or never came to be."""
        if not self._over:
            self._over = True
            self._connections.let_go(self)

    def _say_no(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(_refusal())
            asyncio.get_running_loop().call_soon(self.end)

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


async def _shake(outer: _Outer, connection: socket.socket, context: ssl.SSLContext, seconds: float) -> None:
    """The handshake of one connection."""
    loop = asyncio.get_running_loop()
    try:
        await loop.connect_accepted_socket(lambda: outer, connection, ssl=context, ssl_handshake_timeout=seconds)
    except OSError as error:  # of TLS too: what strangers do is no news
        logger.debug("a handshake failed: %s", error)
        outer.over()
    except BaseException:
        outer.over()
        raise


def _refusal() -> bytes:
    """What a client over TLS is told for whom there is no place."""
    told = "too many connections are open, or too many of this client; close some, and try again"
    answer = error_answer(UnavailableError.code, told, [("connection", "close")])
    lines = [f"HTTP/1.1 {answer.status} Service Unavailable", f"content-length: {len(answer.body)}"]
    lines += [f"{key}: {value}" for key, value in answer.headers]
    return "\r\n".join([*lines, "", ""]).encode() + answer.body


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
