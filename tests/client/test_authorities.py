"""https is checked by the system's authorities, or those that SSL_CERT_FILE names: an owner's own authority needs no code."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.commands import run
from tests.server.pki import Authority

from garrison.client import AsyncClient, Client
from garrison.errors import UnavailableError

BODY = b"[]"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    do_GET = do_POST  # noqa: N815  the name that http.server asks for

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def url(authority: Authority) -> Iterator[str]:
    pair = authority.issue("server", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def ask(url: str) -> None:
    with Client(url, attempts=1) as client:
        assert client.index() == ()

    async def once() -> None:
        async with AsyncClient(url, attempts=1) as client:
            assert await client.index() == ()

    asyncio.run(once())


def test_an_authority_of_ones_own_is_named_by_a_variable(
    url: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnavailableError, match="certificate verify failed"):
        ask(url)
    assert "certificate verify failed" in str(run("attest", url).exception), "the control"
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    ask(url)
    assert "sent no evidence" in str(run("attest", url).exception), "it was asked, and had none"
