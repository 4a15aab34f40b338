"""A proxy on a real port between a client and a server, which changes what passes: what a man in the middle, or a bad cache, can do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "date", "server"}


@dataclass
class Exchange:
    """A request to infer, and its answer."""

    path: str
    asked: bytes
    request: dict[str, str]
    status: int
    headers: dict[str, str]
    body: bytes


Change = Callable[[Exchange], Exchange]


@dataclass
class Tampering:
    """`change` looks at each answer of a model; `before` at each question's body. None changes nothing."""

    url: str = ""
    change: Change | None = None
    before: Callable[[bytes], bytes] | None = None
    seen: list[Exchange] = field(default_factory=list)


@contextmanager
def tampering(server: str) -> Iterator[Tampering]:
    """A proxy before a server, until the end of the block."""
    found, http = Tampering(), httpx.Client(base_url=server, timeout=30)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._pass_on()

        def do_POST(self) -> None:
            self._pass_on()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _pass_on(self) -> None:
            asked = self.rfile.read(int(self.headers.get("content-length", 0)))
            request = {name.lower(): value for name, value in self.headers.items() if name.lower() not in HOP}
            inference = self.path.endswith("/infer")
            sent = found.before(asked) if found.before and inference else asked
            answer = http.request(self.command, self.path, content=sent, headers=request)
            headers = {name: value for name, value in answer.headers.items() if name not in HOP}
            passed = Exchange(self.path, asked, request, answer.status_code, headers, answer.content)
            if inference:
                found.seen.append(passed)
                if found.change is not None:
                    passed = found.change(passed)
            self.send_response(passed.status)
            for name, value in passed.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(passed.body)))
            self.end_headers()
            self.wfile.write(passed.body)

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,))
    thread.start()
    found.url = f"http://127.0.0.1:{listener.server_address[1]}"
    try:
        yield found
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
        http.close()
