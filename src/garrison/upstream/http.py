"""HTTP/1.1 to one server over connections that are kept: blocking, with one deadline for a whole exchange, and bounded answers.

h11 reads and writes the messages; nothing is followed, unpacked or cached, and no proxy of the environment is used. A kept connection that
the server has closed meanwhile is opened anew, once, and only where no byte of an answer was there.

Invariants: a request that reached the server and got no answer is not repeated by itself, since it may be what ended the server's
connection; no error's message holds what the server sent.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import h11

from garrison.errors import ConfigError, UnavailableError, UpstreamError
from garrison.limits import Limits
from garrison.upstream.stream import after, left, receive, send
from garrison.upstream.target import Target

_HEAD_BYTES = 32 * 1024
_MOST_PORT = 65_535
_PORTS = {"http": 80, "https": 443}

DOWN = "the model's server cannot be reached; try again"
SLOW = "the model's server did not answer in time; try again"
BROKEN = "the model's server does not speak HTTP/1.1 as it should"
DROPPED = "the model's server ended the connection in place of an answer"
LONG = "the model's server answers with more than is read here"


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


@dataclass(frozen=True, slots=True)
class Question:
    """One request; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """What came back; header names in lower case, the last of a name counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes


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


class Connections:
    """Kept connections to one server. Safe to use from several threads.

    Args:
        url: the server's.
        key: shown as a bearer token, where the server wants one.
        authorities: file of the certificates that may vouch for an https server; None for the system's.
        most_bytes: longest body of an answer.
        most: connections that are kept, and exchanges under way in `ask_many`.

    Attributes:
        opened: connections opened so far. While it stays the same, it is the same server that answers.

    Raises:
        ConfigError: the URL, the key or the file of authorities cannot be used.
    """

    def __init__(self, url: str, *, key: str = "", authorities: Path | None = None, most_bytes: int, most: int) -> None:
        self.address = parse_url(url)
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError("the key for the model's server must be printable ASCII without spaces or line ends")
        self.opened = 0
        self._most, self._most_bytes = most, most_bytes
        self._tls = _tls(authorities) if self.address.tls else None
        self._headers = [("host", self.address.name), ("accept-encoding", "identity")]
        if key:
            self._headers.append(("authorization", f"Bearer {key}"))
        self._idle: list[_Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    def ask(self, question: Question, seconds: float) -> Response:
        """One exchange, within so many seconds.

        Raises:
            UnavailableError: the server cannot be reached, or does not answer in time.
            UpstreamError: what it says is no HTTP, or too long.
        """
        return self.ask_many([question], seconds)[0]

    def ask_many(self, questions: Sequence[Question], seconds: float) -> list[Response]:
        """Exchanges side by side, so many at a time as connections are kept, all within so many seconds.

        Raises:
            UnavailableError, UpstreamError: as `ask`, if one of them fails.
        """
        deadline = after(seconds)
        found: list[Response] = []
        for start in range(0, len(questions), self._most):
            found += self._side_by_side(questions[start : start + self._most], deadline)
        return found

    def close(self) -> None:
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for connection in idle:
            connection.close()

    def _side_by_side(self, questions: Sequence[Question], deadline: float) -> list[Response]:
        begun: list[_Connection] = []
        try:
            for question in questions:
                begun.append(self._begin(question, deadline))  # noqa: PERF401  those begun must be known if one fails
            found = []
            for number, question in enumerate(questions):
                response = begun[number].finish(deadline, self._most_bytes)
                if response is None:  # a kept connection that had ended
                    begun[number].close()
                    begun[number] = self._open(deadline)
                    begun[number].begin(question, self._target(question), self._headers, deadline)
                    response = begun[number].finish(deadline, self._most_bytes)
                if response is None:
                    raise UpstreamError(DROPPED)
                found.append(response)
        except BaseException:
            for connection in begun:
                connection.close()
            raise
        for connection in begun:
            self._keep(connection)
        return found

    def _begin(self, question: Question, deadline: float) -> _Connection:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            if connection.begin(question, self._target(question), self._headers, deadline):
                return connection
            connection.close()
        connection = self._open(deadline)
        if not connection.begin(question, self._target(question), self._headers, deadline):
            connection.close()
            raise UnavailableError(DOWN)
        return connection

    def _target(self, question: Question) -> str:
        return self.address.path + question.path

    def _open(self, deadline: float) -> _Connection:
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
        return _Connection(stream)

    def _keep(self, connection: _Connection) -> None:
        with self._lock:
            if connection.reusable() and not self._closed and len(self._idle) < self._most:
                self._idle.append(connection)
                return
        connection.close()


def connect(target: Target, limits: Limits) -> Connections:
    """Connections to a target, opened when they are needed.

    Raises:
        ConfigError: the URL, the key or the file of authorities cannot be used.
    """
    return Connections(
        target.url,
        key=target.key,
        authorities=target.authorities,
        most_bytes=limits.upstream_bytes,
        most=limits.upstream_connections,
    )


class _Connection:
    """One connection, one exchange at a time."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
        self._fresh = True

    def begin(self, question: Question, target: str, headers: Sequence[tuple[str, str]], deadline: float) -> bool:
        """Send a request; False where the connection has ended."""
        sent = [*headers, *question.headers.items()]
        if question.method == "POST":
            sent.append(("content-length", str(len(question.body))))
        http = self._http
        head = http.send(h11.Request(method=question.method, target=target, headers=sent)) or b""
        if question.body:
            http.send_with_data_passthrough(h11.Data(data=question.body))
        http.send(h11.EndOfMessage())
        try:
            send(self._stream, head + question.body, deadline)
        except TimeoutError as error:
            raise UnavailableError(SLOW) from error
        except OSError:
            return False
        return True

    def finish(self, deadline: float, most: int) -> Response | None:
        """The answer; None where a kept connection has ended before its first byte.

        Raises:
            UnavailableError, UpstreamError: see `Connections.ask`.
        """
        try:
            return self._finish(deadline, most)
        except h11.RemoteProtocolError as error:
            raise UpstreamError(BROKEN) from error
        except TimeoutError as error:
            raise UnavailableError(SLOW) from error
        except OSError as error:
            raise UpstreamError(DROPPED) from error

    def _finish(self, deadline: float, most: int) -> Response | None:
        http, kept = self._http, not self._fresh
        self._fresh = False
        data = self._first(deadline, kept=kept)
        if not data:
            return None
        http.receive_data(data)
        head: h11.Response | None = None
        parts: list[bytes] = []
        size = 0
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(receive(self._stream, deadline))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                size += len(event.data)
                if size > most:
                    raise UpstreamError(LONG)
                parts.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                break
            elif not isinstance(event, h11.InformationalResponse):
                raise UpstreamError(DROPPED)
        if head is None:
            raise UpstreamError(BROKEN)
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
        return Response(head.status_code, headers, b"".join(parts))

    def _first(self, deadline: float, *, kept: bool) -> bytes:
        """The first bytes of an answer; empty where a kept connection has ended."""
        try:
            data = receive(self._stream, deadline)
        except ConnectionError:
            data = b""
        if not data and not kept:  # nobody is known to be at fault; but whoever asks again is dropped again
            raise UpstreamError(DROPPED)
        return data

    def reusable(self) -> bool:
        """Whether another exchange can follow; made ready for it."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        if self._http.trailing_data[0]:  # an answer that nobody asked for
            return False
        self._http.start_next_cycle()
        return True

    def close(self) -> None:
        self._stream.close()


def _tls(authorities: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if authorities is None else str(authorities))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{authorities}: expected a file of certificates (PEM): {error}") from error
