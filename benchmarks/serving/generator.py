"""The load generator of our own: on one core, without a pause, over non-blocking sockets.

    python -m benchmarks.serving.generator URL POOL SECONDS CONNECTIONS RATE

With RATE 0 the loop is closed: each connection asks as soon as it is answered (for machines without wrk). Else it is open: requests fall due at random
times, RATE a second on average, whether or not the server keeps up; a latency runs from the time at which its request was due. With SECONDS 0 each
connection asks once, all at the same time, and the seconds are those until the last is answered. Prints JSON.
"""

from __future__ import annotations

import json
import random
import re
import selectors
import socket
import sys
import time
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNK = 262_144
LATE_SECONDS = 15.0
"""What is not answered so long after the end is an error."""


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

    def send(self, request: bytes, due: float) -> None:
        self.due, self._rest = due, memoryview(request)
        self._answer.clear()
        self.push()

    def push(self) -> None:
        """Send what is left, as far as the socket takes it."""
        while self._rest:
            try:
                self._rest = self._rest[self.socket.send(self._rest) :]
            except BlockingIOError:
                return

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
    """Sends a pool over some connections, and notes the latencies of good answers, in seconds."""

    def __init__(self, url: str, pool: list[bytes], connections: int, rate: float) -> None:
        place = urlsplit(url)
        address = (place.hostname or "127.0.0.1", place.port or 80)
        self._pool, self._rate, self._next = pool, rate, 0
        self._free = deque(Connection(address) for _ in range(connections))
        self._busy: set[Connection] = set()
        self._selector = selectors.DefaultSelector()
        for connection in self._free:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        self.latencies: list[float] = []
        self.errors = 0

    def run(self, seconds: float) -> float:
        """Send what falls due in so many seconds, and wait for the answers. The seconds."""
        draw = random.Random(0)
        start = time.perf_counter()
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
        for key in list(self._selector.get_map().values()):
            key.data.socket.close()
        self._selector.close()

    def _send(self, due: float) -> None:
        connection = self._free.popleft()
        connection.send(self._pool[self._next % len(self._pool)], due)
        self._next += 1
        self._busy.add(connection)

    def _receive(self) -> None:
        for key, _ in self._selector.select(0):
            connection = key.data
            good = connection.pull()
            if good is None:
                continue
            if good:
                self.latencies.append(time.perf_counter() - connection.due)
            else:
                self.errors += 1
            self._busy.discard(connection)
            self._free.append(connection)
        for connection in self._busy:
            connection.push()


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def main() -> None:
    url, folder, seconds, connections, rate = sys.argv[1:]
    load = Load(url, read_pool(Path(folder)), int(connections), float(rate))
    took = load.run(float(seconds)) if float(seconds) else load.burst()
    ordered = sorted(load.latencies)
    found = {"requests": len(ordered) + load.errors, "errors": load.errors, "seconds": took}
    print(json.dumps(found | {"p50_ms": quantile(ordered, 0.5) * 1e3, "p99_ms": quantile(ordered, 0.99) * 1e3}))


if __name__ == "__main__":
    main()
