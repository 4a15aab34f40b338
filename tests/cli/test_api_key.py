"""Commands show an API key over plain HTTP on this machine alone, unless one says that more is meant."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from tests.cli.test_connect import connect
from tests.commands import fails, run, save

from garrison.client import AsyncClient, Client
from garrison.errors import NotFoundError, PlaintextKeyError

KEY = "gk_me_secret"
BODY = b'{"error": "nothing is here", "code": "request.not_found"}'


class Listener:
    """A server that has nothing, and keeps what keys it was shown. `far` is a name of it that is not known to be this machine's."""

    def __init__(self, port: int) -> None:
        self.keys: list[str | None] = []
        self.near, self.far = f"http://127.0.0.1:{port}", f"http://127.1:{port}"


@pytest.fixture
def listener() -> Iterator[Listener]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers["content-length"] or 0))
            found.keys.append(self.headers["authorization"])
            self.send_response(404)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        do_POST = do_GET  # noqa: N815  the name that http.server asks for

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Listener(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def words_of(command: str, url: str, folder: Path) -> list[str]:
    more = {
        "predict": [str(save(folder / "x.npz", x=np.zeros((1, 2), np.float32)))],
        "audit": ["--plan", "extraction-quick", "-o", str(folder / "report")],
    }
    return [command, url, *more.get(command, [])]


@pytest.mark.parametrize("command", ["predict", "attest", "audit", "connect"])
def test_no_command_shows_a_key_in_the_open(listener: Listener, tmp_path: Path, command: str) -> None:
    told = fails(PlaintextKeyError, *words_of(command, listener.far, tmp_path), "--api-key", KEY)
    assert "https://" in told
    assert "--insecure-plaintext" in told
    assert KEY not in told
    assert not listener.keys


@pytest.mark.parametrize("command", ["predict", "attest", "audit"])
@pytest.mark.parametrize("flag", [(), ("--insecure-plaintext",)], ids=["on this machine", "as it was meant"])
def test_the_control_the_same_key_is_shown(
    listener: Listener, tmp_path: Path, command: str, flag: tuple[str, ...]
) -> None:
    url = listener.far if flag else listener.near
    run(*words_of(command, url, tmp_path), "--api-key", KEY, *flag)
    assert set(listener.keys) == {f"Bearer {KEY}"}


def test_connect_shows_a_key_where_that_is_meant(listener: Listener) -> None:
    with connect(listener.far, "--api-key", KEY, "--insecure-plaintext"):
        assert set(listener.keys) == {f"Bearer {KEY}"}


def test_without_a_key_there_is_nothing_to_keep(listener: Listener, tmp_path: Path) -> None:
    run(*words_of("predict", listener.far, tmp_path))
    assert set(listener.keys) == {None}


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("sealed", [False, True])
def test_no_client_shows_a_key_in_the_open(
    listener: Listener, kind: type[Client | AsyncClient], *, sealed: bool
) -> None:
    """A seal hides the input, and not the key."""
    with pytest.raises(PlaintextKeyError, match="insecure_plaintext=True"):
        kind(listener.far, api_key=KEY, sealed=sealed)
    kind("https://models.example", api_key=KEY, sealed=sealed)
    kind("http://[::1]:8080", api_key=KEY, sealed=sealed)


def test_the_control_both_clients_show_it_where_that_is_meant(listener: Listener) -> None:
    with Client(listener.far, api_key=KEY, insecure_plaintext=True) as client, pytest.raises(NotFoundError):
        client.index()

    async def ask() -> None:
        async with AsyncClient(listener.far, api_key=KEY, insecure_plaintext=True) as client:
            await client.index()

    with pytest.raises(NotFoundError):
        asyncio.run(ask())
    assert listener.keys == [f"Bearer {KEY}"] * 2
