"""One HTTP/1.1 connection to the model's server, one exchange at a time.

h11 writes each head once, and reads whatever is not of the plainest form: a 200 that says its length in one header and nothing of its framing.
Answers of that form, nearly all, are read here, since h11 takes longer for them than all the rest of an exchange.

Invariants: what is read here is read by h11 to the same end; a connection is used again only where the answer ended where its length said, and nothing
lies behind it.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence

import h11

from garrison.errors import UnavailableError, UpstreamError
from garrison.protocol.http_messages import Request, Response
from garrison.upstream.stream import arrivals_at, receive, send

_HEAD_BYTES = 32 * 1024
_MOST_HEADS, _MOST_PLAIN_HEAD = 64, 4096
_PLAIN = re.compile(
    rb"HTTP/1\.1 200 [ -~]{0,64}((?:\r\n[a-zA-Z0-9-]{1,64}: [!-~](?:[ -~]{0,1022}[!-~])?){1,32})\r\n\r\n", re.ASCII
)
"""A head in which nothing is folded, empty, doubtful or out of ASCII."""
_LINE = re.compile(r"\r\n([^:]+): ([^\r]+)")
_FRAMING = frozenset({"transfer-encoding", "connection", "upgrade", "trailer"})
"""Headers that change where an answer ends, or whether another may follow: h11's."""
_MOST_DIGITS = 15

DOWN = "the model's server cannot be reached; try again"
SLOW = "the model's server did not answer in time; try again"
BROKEN = "the model's server does not speak HTTP/1.1 as it should"
DROPPED = "the model's server ended the connection in place of an answer"
LONG = "the model's server answers with more than is read here"
NEVER = float("inf")


class WaitingError(BaseException):
    """No answer yet. No error of anybody: it goes through all that catches errors, up to who may wait on."""


class Connection:
    """One connection, one exchange at a time.

    Attributes:
        reusable: whether another exchange can follow.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._stream, self._arrivals = stream, arrivals_at(stream)
        self._heads: dict[tuple[str, str, tuple[tuple[str, str], ...]], bytes] = {}
        self._method, self.reusable, self._fresh = "", False, True
        self._data, self._deadline = b"", NEVER
        self._rest: list[bytes] = []

    def begin(self, question: Request, target: str, headers: Sequence[tuple[str, str]], deadline: float) -> bool:
        """Send a request; False where the connection has ended."""
        sent = (*headers, *question.headers.items())
        key = question.method, target, sent
        head = self._heads.get(key)
        self.reusable, self._data = False, b""
        self._rest.clear()
        if head is None:
            if len(self._heads) >= _MOST_HEADS:
                self._heads.clear()
            head = self._heads[key] = _head(question.method, target, sent)
        if question.method == "POST":
            head = b"%bcontent-length: %d\r\n\r\n" % (head[:-2], len(question.body))
        self._method = question.method
        try:
            send(self._stream, head + question.body, deadline)
        except TimeoutError as error:
            raise UnavailableError(SLOW) from error
        except OSError:
            return False
        return True

    def finish(self, deadline: float, most: int, until: float = NEVER) -> Response | None:
        """The answer; None where a kept connection has ended before its first byte.

        Args:
            deadline: by `time.monotonic`, when to give up.
            most: longest body.
            until: when to stop waiting for now; what came so far is kept, and `finish` may be called again.

        Raises:
            WaitingError: not by `until`.
            UnavailableError, UpstreamError: see `Connections.ask`.
        """
        try:
            return self._finish(deadline, most, until)
        except h11.RemoteProtocolError as error:
            raise UpstreamError(BROKEN) from error
        except TimeoutError as error:
            if time.monotonic() < deadline:
                raise WaitingError from error
            raise UnavailableError(SLOW) from error
        except OSError as error:
            raise UpstreamError(DROPPED) from error

    def _finish(self, deadline: float, most: int, until: float) -> Response | None:
        self._deadline = min(deadline, until)
        if not self._data:
            self._data = self._first()
            if not self._data:
                return None
            self._fresh = False
        elif self._rest:
            self._data = b"".join((self._data, *self._rest))
            self._rest.clear()
        return self._plain(most) or self._by_h11(most)

    def _more(self) -> bytes:
        """What comes next; kept, for an answer that is read in several goes."""
        part = receive(self._stream, self._arrivals, self._deadline)
        self._rest.append(part)
        return part

    def _plain(self, most: int) -> Response | None:
        """An answer of the plainest form; None for h11 to read."""
        found = _PLAIN.match(self._data, 0, _MOST_PLAIN_HEAD)
        if found is None or self._method == "HEAD":
            return None
        lines = _LINE.findall(found[1].decode("ascii"))
        headers = {name.lower(): value for name, value in lines}
        length = headers.get("content-length", "")
        if (
            len(headers) < len(lines)
            or not (length.isdigit() and len(length) <= _MOST_DIGITS)
            or _FRAMING & headers.keys()
        ):
            return None
        end = found.end() + int(length)
        if int(length) > most:
            raise UpstreamError(LONG)
        if len(self._data) < end:
            self._up_to(end)
        self.reusable = len(self._data) == end  # else there is an answer that nobody asked for
        return Response(200, headers, self._data[found.end() : end])

    def _up_to(self, end: int) -> None:
        """Read so many bytes at least. A long answer comes in many parts, which are joined once."""
        parts, size = [self._data], len(self._data)
        try:
            while size < end:
                part = receive(self._stream, self._arrivals, self._deadline)
                if not part:
                    raise UpstreamError(DROPPED)
                parts.append(part)
                size += len(part)
        finally:
            self._data = b"".join(parts)

    def _by_h11(self, most: int) -> Response:
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
        http.send(
            h11.Request(method=self._method, target="/", headers=[("host", "h")])
        )  # as it was sent: its end is known
        http.send(h11.EndOfMessage())
        http.receive_data(self._data)
        head: h11.Response | None = None
        parts: list[bytes] = []
        size = 0
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(self._more())
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
        done = http.our_state is h11.DONE and http.their_state is h11.DONE
        self.reusable = done and not http.trailing_data[0]
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
        return Response(head.status_code, headers, b"".join(parts))

    def _first(self) -> bytes:
        """The first bytes of an answer; empty where a kept connection has ended."""
        try:
            data = receive(self._stream, self._arrivals, self._deadline)
        except ConnectionError:
            data = b""
        if not data and self._fresh:  # nobody is known to be at fault; but whoever asks again is dropped again
            raise UpstreamError(DROPPED)
        return data

    def close(self) -> None:
        self._stream.close()


def _head(method: str, target: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """A request's head, without a length: h11 sees to it that nothing in it breaks out of its line."""
    return h11.Connection(h11.CLIENT).send(h11.Request(method=method, target=target, headers=list(headers))) or b""
