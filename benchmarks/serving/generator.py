"""The load generator of our own: on one core, without a pause, over non-blocking sockets.

    python -m benchmarks.serving.generator URL POOL SECONDS CONNECTIONS RATE

With RATE 0 the loop is closed: each connection asks as soon as it is answered (for machines without wrk). Else it is open: requests fall due at random
times, RATE a second on average, whether or not the server keeps up; a latency runs from the time at which its request was due. What is sent in the
first `WARM_SECONDS`, which come on top, is answered and not noted: a server that has slept has to find its way back into the processor's caches, and
that may take longer than the slowest hundredth of a short load. With SECONDS 0 each connection asks once, all at the same time, and the seconds are
those until the last is answered. Prints JSON.
"""

from __future__ import annotations

import gc
import json
import random
import re
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNK = 65_536
LATE_SECONDS = 15.0
"""What is not answered so long after the end is an error."""
WARM_SECONDS = 0.25


def read_pool(folder: Path) -> list[bytes]:
    data, found, start = (folder / "requests").read_bytes(), [], 0
    for size in map(int, (folder / "sizes").read_text().split()):
        found.append(data[start : start + size])
        start += size
    return found


def whole(data: bytes | bytearray) -> bool:
    """Whether a response is there to its last byte."""
    head, found, _ = data.partition(b"\r\n\r\n")
    if not found:
        return False
    length = _LENGTH.search(head)
    if length is not None:
        return len(data) - len(head) - 4 >= int(length[1])
    return b"\r\ntransfer-encoding: chunked" not in head.lower() or data.endswith(b"0\r\n\r\n")


class Connection:
    """A keep-alive connection with at most one request in flight."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(0)
        self._answer = bytearray()
        self._rest = memoryview(b"")
        self.due = 0.0

    def send(self, request: bytes, due: float) -> bool:
        """Send a request, as far as the socket takes it; whether that was all."""
        self.due, self._rest = due, memoryview(request)
        self._answer.clear()
        return self.push()

    def push(self) -> bool:
        """Send what is left, as far as the socket takes it; whether that was all."""
        while self._rest:
            try:
                self._rest = self._rest[self.socket.send(self._rest) :]
            except BlockingIOError:
                return False
        return True

    def pull(self) -> bool | None:
        """Read; whether the answer was good, None while it is not whole.

        Raises:
            OSError: the server has closed the connection.
        """
        data = self.socket.recv(_CHUNK)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._answer += data
        return self._answer.startswith(b"HTTP/1.1 200") if whole(self._answer) else None


class Load:
    """Sends a pool over some connections, counts good answers, and notes their latencies, in seconds."""

    def __init__(self, url: str, pool: list[bytes], connections: int, rate: float) -> None:
        place = urlsplit(url)
        address = (place.hostname or "127.0.0.1", place.port or 80)
        self._pool, self._rate, self._next = pool, rate, 0
        self._free = deque(Connection(address) for _ in range(connections))
        self._busy: set[Connection] = set()
        self._unsent: set[Connection] = set()
        self._connections = {connection.socket.fileno(): connection for connection in self._free}
        self._poll = select.epoll()
        for descriptor in self._connections:
            self._poll.register(descriptor, select.EPOLLIN)
        self._note_from = 0.0
        self.latencies: list[float] = []
        self.answered = self.errors = 0

    def run(self, seconds: float, warm: float = 0.0) -> float:
        """Send what falls due in so many seconds, and wait for the answers. The seconds.

        Args:
            warm: so many seconds more come before, whose latencies are not noted.
        """
        draw = random.Random(0)
        start = time.perf_counter()
        seconds += warm
        self._note_from = start + warm
        end, due = start + seconds, start
        while (now := time.perf_counter()) < end + LATE_SECONDS:
            open_end = now < end if not self._rate else due < end
            if not open_end and not self._busy:
                break
            while self._free and open_end and (not self._rate or due <= now):
                self._send(due if self._rate else now)
                due += draw.expovariate(self._rate) if self._rate else 0.0
                open_end = not self._rate or due < end
            self._receive()
        self.errors += len(self._busy) + (round((end - due) * self._rate) if self._rate and due < end else 0)
        return seconds

    def burst(self) -> float:
        """Send one request on each connection, and wait for the answers. The seconds that it took."""
        start = time.perf_counter()
        for _ in range(len(self._free)):
            self._send(start)
        while self._busy and time.perf_counter() < start + LATE_SECONDS:
            self._receive()
        self.errors += len(self._busy)
        return time.perf_counter() - start

    def close(self) -> None:
        for connection in self._connections.values():
            connection.socket.close()
        self._poll.close()

    def _send(self, due: float) -> None:
        connection = self._free.popleft()
        if not connection.send(self._pool[self._next % len(self._pool)], due):
            self._unsent.add(connection)
        self._next += 1
        self._busy.add(connection)

    def _receive(self) -> None:
        for descriptor, _ in self._poll.poll(0):
            connection = self._connections[descriptor]
            good = connection.pull()
            if good is None:
                continue
            if good:
                self.answered += 1
                if connection.due >= self._note_from:
                    self.latencies.append(time.perf_counter() - connection.due)
            else:
                self.errors += 1
            self._busy.discard(connection)
            self._free.append(connection)
        if self._unsent:
            self._unsent = {connection for connection in self._unsent if not connection.push()}


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main() -> None:
    url, folder, seconds, connections, rate = sys.argv[1:]
    load = Load(url, read_pool(Path(folder)), int(connections), float(rate))
    gc.disable()  # a pause of ours would look like one of the server's
    took = load.run(float(seconds), WARM_SECONDS if float(rate) else 0.0) if float(seconds) else load.burst()
    ordered = sorted(load.latencies)
    found = {"requests": load.answered + load.errors, "errors": load.errors, "seconds": took}
    print(json.dumps(found | {"p50_ms": quantile(ordered, 0.5) * 1e3, "p99_ms": quantile(ordered, 0.99) * 1e3}))


if __name__ == "__main__":
    main()
