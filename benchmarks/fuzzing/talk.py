"""Sends requests over raw sockets, many on the way at once, and judges every response.

Two ways. `framed`: the framing of HTTP is right, so that 32 requests go out in one piece on each of 16 connections; every 16th is well-formed, and its answer is
compared with the right one. `wire`: bytes of whole requests are mutated, framing and all; a connection each, closed after it for sending.

A response is bad where it has status 500, is no response at all, or says an error in another form than the documented one. Whether a mutated request that the service answered
with 200 got the right answer is not checked (it may be another valid input).
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.fuzzing.mutations import Mutator, Request, RequestMutator

from garrison.errors import UnavailableError
from garrison.protocol.http_status import STATUS
from garrison.server.app import ATTESTATION_PATH

CONNECTIONS, PIPELINED, GOOD_ONE_IN = 16, 32, 16
WIRE_CONNECTIONS, WIRE_SECONDS, AGAIN_SECONDS = 64, 20.0, 5.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_AGAIN = re.compile(rb"\r\nretry-after: *\d+\r\n", re.IGNORECASE)
_KEPT = 20
_OK = 200

Judge = Callable[[int, bytes], bool]
"""Whether a body is the right answer to the well-formed request of that number."""


@dataclass
class Seen:
    """What came back.

    Attributes:
        sent: malformed requests that were answered, or whose connection was ended for them.
        good: well-formed requests that were answered rightly; `wrong`, those that were not.
        ended: connections that the server closed on a malformed request, as it must on one whose end cannot be told.
        late: connections that were neither answered nor closed in time.
        bad: responses that must not be, at most 20 of them.
    """

    sent: int = 0
    good: int = 0
    wrong: int = 0
    ended: int = 0
    late: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, status: int, head: bytes, body: bytes, request: bytes) -> None:
        """One response to a malformed request. The head ends with its last line's end."""
        self.sent += 1
        self.statuses[status] += 1
        if status == _OK:
            return
        try:
            said = json.loads(body)
            code = said["code"]
            good = (
                STATUS.get(code) == status
                and (status < 500 or _is_for_later(code, head, request))
                and said.keys() == {"error", "code"}
                and isinstance(said["error"], str)
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            code, good = "", False
        self.codes[code] += 1
        if not good and not _of_web_server(status, body):
            self.complain(f"{status} {body[:200]!r} to {request[:2000]!r}")

    def complain(self, what: str) -> None:
        if len(self.bad) < _KEPT:
            self.bad.append(what)


def _is_for_later(code: str, head: bytes, request: bytes) -> bool:
    """Who is told when to come again: a mutated request may name a time within which nobody can answer; and of those for evidence only so many may wait at once."""
    if code != UnavailableError.code or not _AGAIN.search(head):
        return False
    return b"request-timeout" in request.lower() or ATTESTATION_PATH.encode() in request.partition(b"\r\n")[0]


def _of_web_server(status: int, body: bytes) -> bool:
    """The HTTP library's own refusal of what is no HTTP: without a body, before our code sees anything."""
    return status in {400, 414, 431} and not body


class _Pipe:
    """A connection with requests on the way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=WIRE_SECONDS)
        self.buffer = bytearray()
        self.waiting: list[tuple[int, bytes]] = []
        """Number of the well-formed request, -1 for a malformed one; and its bytes."""
        self.at = 0

    def send(self, requests: list[tuple[int, bytes]]) -> None:
        self.waiting, self.at = requests, 0
        self.socket.sendall(b"".join(data for _, data in requests))

    def responses(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Status, head and body of those that are whole."""
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self.buffer, 0, end + 4)
            last = end + 4 + (int(found[1]) if found else 0)
            if len(self.buffer) < last:
                return
            status, head, body = (
                int(self.buffer[9:12]),
                bytes(self.buffer[: end + 2]),
                bytes(self.buffer[end + 4 : last]),
            )
            del self.buffer[:last]
            yield status, head, body


class Framed:
    """The first way.

    Args:
        good: well-formed requests.
        judge: tells a right answer to one of them.
    """

    def __init__(self, address: tuple[str, int], mutator: RequestMutator, good: list[Request], judge: Judge) -> None:
        self._address, self._mutator, self._judge = address, mutator, judge
        self._good = [request.wire() for request in good]
        self._turn = 0

    def run(self, count: int, seen: Seen) -> None:
        started, first = time.monotonic(), seen.sent
        poll, pipes = select.epoll(), {}

        def begin() -> None:
            pipe = _Pipe(self._address)
            pipes[pipe.socket.fileno()] = pipe
            poll.register(pipe.socket.fileno(), select.EPOLLIN)
            pipe.send(self._chunk())

        for _ in range(min(CONNECTIONS, 1 + count // PIPELINED)):
            begin()
        while pipes:
            ready = poll.poll(WIRE_SECONDS)
            if not ready:
                seen.late += len(pipes)
                seen.complain(f"{len(pipes)} connections were not answered within {WIRE_SECONDS} s")
                break
            for descriptor, _ in ready:
                pipe = pipes[descriptor]
                ended = self._receive(pipe, seen)
                done = pipe.at == len(pipe.waiting)
                if not ended and not done:
                    continue
                more = seen.sent - first < count
                if ended or not more:
                    pipe.socket.close()
                    del pipes[descriptor]
                    if more:
                        begin()
                else:
                    pipe.send(self._chunk())
        for pipe in pipes.values():
            pipe.socket.close()
        poll.close()
        seen.seconds += time.monotonic() - started

    def _receive(self, pipe: _Pipe, seen: Seen) -> bool:
        """Judge what has come; whether the connection has ended, for which the request that was next is to blame."""
        try:
            data = pipe.socket.recv(1 << 16)
        except OSError:
            data = b""
        pipe.buffer += data
        for status, head, body in pipe.responses():
            number, request = pipe.waiting[pipe.at]
            pipe.at += 1
            if number < 0:
                seen.note(status, head, body, request)
            else:
                self._note_good(number, status, body, seen)
        if data or pipe.at == len(pipe.waiting):
            return not data
        if pipe.waiting[pipe.at][0] >= 0 and (pipe.at == 0 or pipe.waiting[pipe.at - 1][0] >= 0):
            seen.wrong += 1
            seen.complain("a connection ended at a well-formed request")
        elif pipe.waiting[pipe.at][0] < 0:
            seen.sent += 1
        seen.ended += 1
        return True

    def _note_good(self, number: int, status: int, body: bytes, seen: Seen) -> None:
        right = status == _OK and self._judge(number, body)
        seen.good += right
        seen.wrong += not right
        if not right:
            seen.complain(f"a well-formed request got {status} {body[:200]!r}")

    def _chunk(self) -> list[tuple[int, bytes]]:
        found = []
        for k in range(PIPELINED):
            if k % GOOD_ONE_IN == GOOD_ONE_IN - 1:
                self._turn = (self._turn + 1) % len(self._good)
                found.append((self._turn, self._good[self._turn]))
            else:
                found.append((-1, self._mutator.next().wire()))
        return found


class Wire:
    """The second way.

    Args:
        corpus: what a client sends in one connection.
        reads_http: judge what comes back as HTTP/1.1; else it only must end.
    """

    def __init__(self, address: tuple[str, int], mutator: Mutator, corpus: list[bytes], *, reads_http: bool) -> None:
        self._address, self._mutator, self._corpus, self._reads_http = address, mutator, corpus, reads_http
        self._turn = 0

    def run(self, count: int, seen: Seen) -> None:
        started, poll = time.monotonic(), select.epoll()
        talks: dict[int, tuple[_Pipe, bytes, float]] = {}
        begun = 0
        while begun < count or talks:
            while begun < count and len(talks) < WIRE_CONNECTIONS:
                begun += 1
                pipe, data = self._pipe(), self._next()
                talks[pipe.socket.fileno()] = pipe, data, time.monotonic() + WIRE_SECONDS
                poll.register(pipe.socket.fileno(), select.EPOLLIN)
                try:
                    pipe.socket.sendall(data)
                    pipe.socket.shutdown(socket.SHUT_WR)
                except OSError:  # it was refused before all of it was sent: the end comes as an event
                    continue
            for descriptor, _ in poll.poll(0.5):
                if self._ended(talks[descriptor][0]):
                    self._close(talks.pop(descriptor), seen)
            now = time.monotonic()
            for descriptor in [d for d, (_, _, until) in talks.items() if until < now]:
                seen.late += 1
                pipe, data, _ = talks.pop(descriptor)
                seen.complain(f"neither answered nor ended within {WIRE_SECONDS} s: {data[:2000]!r}")
                pipe.socket.close()
        poll.close()
        seen.seconds += time.monotonic() - started

    def _pipe(self) -> _Pipe:
        """HTTP must take each connection at once; gRPC's server may be beginning anew."""
        until = time.monotonic() + (0.0 if self._reads_http else AGAIN_SECONDS)
        while True:
            try:
                return _Pipe(self._address)
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def _ended(self, pipe: _Pipe) -> bool:
        try:
            data = pipe.socket.recv(1 << 16)
        except OSError:
            return True
        pipe.buffer += data
        return not data

    def _close(self, talk: tuple[_Pipe, bytes, float], seen: Seen) -> None:
        pipe, data, _ = talk
        pipe.socket.close()
        if not self._reads_http:
            seen.sent += 1
            return
        before = seen.sent
        for status, head, body in pipe.responses() if pipe.buffer.startswith(b"HTTP/1.1 ") else ():
            seen.note(status, head, body, data)
        seen.ended += seen.sent == before
        seen.sent = before + 1  # one malformed piece, whatever number of responses it had

    def _next(self) -> bytes:
        self._turn = (self._turn + 1) % len(self._corpus)
        return self._mutator.mutate(self._corpus[self._turn])
