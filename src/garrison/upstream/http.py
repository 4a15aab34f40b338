"""HTTP/1.1 to one server over connections that are kept: blocking, with one deadline for a whole exchange, and bounded answers.

See `garrison.upstream.connection` for the messages; nothing is followed, unpacked or cached, and no proxy of the environment is used. A kept connection that
the server has closed meanwhile is opened anew, once, and only where no byte of an answer was there.

Invariants: a request that reached the server and got no answer is not repeated by itself, since it may be what ended the server's
connection; no error's message holds what the server sent.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from garrison.errors import ConfigError, PlaintextKeyError, UnavailableError, UpstreamError
from garrison.limits import Limits
from garrison.protocol.addresses import is_loopback
from garrison.protocol.http_messages import Request, Response
from garrison.protocol.tls import client_tls
from garrison.upstream.connection import DOWN, DROPPED, NEVER, Connection, WaitingError
from garrison.upstream.stream import after, left
from garrison.upstream.target import Target

_MOST_PORT = 65_535
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens.

    Attributes:
        path: before every path, without a slash at its end.
    """

    host: str
    port: int
    tls: bool
    path: str

    @property
    def name(self) -> str:
        """As in the header `host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS["https" if self.tls else "http"] else f"{host}:{self.port}"


def parse_url(url: str) -> Address:
    """Where a URL leads.

    Raises:
        ConfigError: it is no http(s) URL of a server, or holds a user, a query or a fragment.
    """
    expected = f"expected the server's URL, such as http://127.0.0.1:8000, found {url[:200]!r}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(expected) from error
    plain = url.isascii() and url.isprintable() and " " not in url
    if not plain or parts.scheme not in _PORTS or not parts.hostname or parts.username is not None or port == 0:
        raise ConfigError(expected)
    if parts.query or parts.fragment:
        raise ConfigError(f"{expected}, without a query")
    return Address(parts.hostname, port or _PORTS[parts.scheme], parts.scheme == "https", parts.path.rstrip("/"))


class Asked(msgspec.Struct, eq=False):
    """Exchanges under way, each over a connection of its own."""

    questions: Sequence[Request]
    deadline: float
    begun: list[Connection] = []
    found: list[Response] = []

    def close(self) -> None:
        """Nobody waits for the answers any more."""
        for connection in self.begun:
            connection.close()


class Connections:
    """Kept connections to one server. Safe to use from several threads.

    Args:
        url: the server's.
        key: shown as a bearer token, where the server wants one.
        authorities: file of the certificates that may vouch for an https server; None for the system's.
        insecure_plaintext: show the key over plain HTTP beyond this machine too.
        most_bytes: longest body of an answer.
        most: connections that are kept, and exchanges under way in `ask_many`.

    Attributes:
        most: as given.
        opened: connections opened so far. While it stays the same, it is the same server that answers.

    Raises:
        PlaintextKeyError: all on the way to the server could read the key.
        ConfigError: the URL, the key or the file of authorities cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        authorities: Path | None = None,
        insecure_plaintext: bool = False,
        most_bytes: int,
        most: int,
    ) -> None:
        self.address = parse_url(url)
        if key and not (self.address.tls or insecure_plaintext or is_loopback(self.address.host)):
            raise PlaintextKeyError(
                f"the key for the model's server is not sent to {self.address.host} over plain HTTP, where all on the way could read it: "
                "use https://, or say that this is meant (--upstream-insecure-plaintext, server.upstream_insecure_plaintext)"
            )
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError("the key for the model's server must be printable ASCII without spaces or line ends")
        self.opened = 0
        self.most, self._most_bytes = most, most_bytes
        self._tls = client_tls(authorities) if self.address.tls else None
        self._headers = [("host", self.address.name), ("accept-encoding", "identity")]
        if key:
            self._headers.append(("authorization", f"Bearer {key}"))
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    def ask(self, question: Request, seconds: float) -> Response:
        """One exchange, within so many seconds.

        Raises:
            UnavailableError: the server cannot be reached, or does not answer in time.
            UpstreamError: what it says is no HTTP, or too long.
        """
        return self.ask_many([question], seconds)[0]

    def ask_many(self, questions: Sequence[Request], seconds: float) -> list[Response]:
        """Exchanges side by side, so many at a time as connections are kept, all within so many seconds.

        Raises:
            UnavailableError, UpstreamError: as `ask`, if one of them fails.
        """
        found: list[Response] = []
        deadline = after(seconds)
        for start in range(0, len(questions), self.most):
            found += self.finish(self.begin(questions[start : start + self.most], deadline))
        return found

    def begin(self, questions: Sequence[Request], deadline: float) -> Asked:
        """Send requests, no more than connections are kept, each over one of its own.

        Args:
            deadline: by `time.monotonic`, for sending and for the answers.

        Raises:
            UnavailableError, UpstreamError: as `ask`.
        """
        asked = Asked(questions, deadline)
        try:
            for question in questions:
                asked.begun.append(self._begin(question, deadline))
        except BaseException:
            asked.close()
            raise
        return asked

    def finish(self, asked: Asked, until: float = NEVER) -> list[Response]:
        """The answers.

        Args:
            until: by `time.monotonic`, when to stop waiting for now.

        Raises:
            WaitingError: not by `until`; this may be called again.
            UnavailableError, UpstreamError: as `ask`, if one of them fails.
        """
        try:
            for number in range(len(asked.found), len(asked.questions)):
                asked.found.append(self._answer(asked, number, until))
        except WaitingError:
            raise
        except BaseException:
            asked.close()
            raise
        for connection in asked.begun:
            self._keep(connection)
        return asked.found

    def close(self) -> None:
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for connection in idle:
            connection.close()

    def _answer(self, asked: Asked, number: int, until: float) -> Response:
        response = asked.begun[number].finish(asked.deadline, self._most_bytes, until)
        if response is None:  # a kept connection that had ended
            question = asked.questions[number]
            asked.begun[number].close()
            asked.begun[number] = self._open(asked.deadline)
            asked.begun[number].begin(question, self.address.path + question.path, self._headers, asked.deadline)
            response = asked.begun[number].finish(asked.deadline, self._most_bytes, until)
        if response is None:
            raise UpstreamError(DROPPED)
        return response

    def _begin(self, question: Request, deadline: float) -> Connection:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            if connection.begin(question, self.address.path + question.path, self._headers, deadline):
                return connection
            connection.close()
        connection = self._open(deadline)
        if not connection.begin(question, self.address.path + question.path, self._headers, deadline):
            connection.close()
            raise UnavailableError(DOWN)
        return connection

    def _open(self, deadline: float) -> Connection:
        address = self.address
        if self._closed:
            raise UnavailableError(DOWN)
        try:
            stream = socket.create_connection((address.host, address.port), timeout=left(deadline))
        except OSError as error:
            raise UnavailableError(DOWN) from error
        try:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                stream.settimeout(left(deadline))
                stream = self._tls.wrap_socket(stream, server_hostname=address.host)
            stream.settimeout(0)
        except ssl.SSLCertVerificationError as error:
            stream.close()
            raise UpstreamError("the certificate of the model's server does not hold") from error
        except OSError as error:
            stream.close()
            raise UnavailableError(DOWN) from error
        self.opened += 1
        return Connection(stream)

    def _keep(self, connection: Connection) -> None:
        with self._lock:
            if connection.reusable and not self._closed and len(self._idle) < self.most:
                self._idle.append(connection)
                return
        connection.close()


def connect(target: Target, limits: Limits) -> Connections:
    """Connections to a target, opened when they are needed.

    Raises:
        PlaintextKeyError, ConfigError: see `Connections`.
    """
    return Connections(
        target.url,
        key=target.key,
        authorities=target.authorities,
        insecure_plaintext=target.insecure_plaintext,
        most_bytes=limits.upstream_bytes,
        most=limits.upstream_connections,
    )
