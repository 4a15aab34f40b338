"""What commands show a service: an API key, over plain HTTP on this machine alone unless one says that more is meant, and certificates."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from tests.cli.test_connect import ask, connect
from tests.commands import as_json, fails, run, save
from tests.models import BOUNDS, RELEASE, SCORE, images, misinform, seal_mlp
from tests.server.pki import Authority, Pair
from tests.simulated import serve_simulated

from garrison.client import AsyncClient, Client
from garrison.errors import (
    ConfigError,
    NotFoundError,
    PlaintextKeyError,
    PlanError,
    SealedRequestError,
    UnavailableError,
)

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


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def named(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service, with a simulated enclave, that knows its callers by their certificates."""
    folder, server = tmp_path_factory.mktemp("named"), authority.issue("server", "garrison")
    sealed = seal_mlp(folder / "mlp", (BOUNDS, SCORE, misinform(0.6), RELEASE))
    files: dict[str, Any] = {
        "tls_cert": str(server.cert),
        "tls_key": str(server.key),
        "tls_client_ca": str(authority.file),
    }
    with serve_simulated(sealed, state=folder / "state", tls_client_names=True, **files) as (served, _):
        yield served.url


@pytest.fixture(scope="module")
def alice(authority: Authority) -> Pair:
    return authority.issue("alice", "alice")


def shown(authority: Authority, pair: Pair | None = None) -> list[str]:
    own = [] if pair is None else ["--tls-cert", str(pair.cert), "--tls-key", str(pair.key)]
    return ["--tls-ca", str(authority.file), *own]


def asked(url: str, folder: Path, *more: str) -> list[str]:
    return ["predict", url, str(save(folder / "x.npz", x=images(2))), *more]


def test_a_certificate_lets_commands_in(named: str, authority: Authority, alice: Pair, tmp_path: Path) -> None:
    mine = shown(authority, alice)
    assert as_json(*asked(named, tmp_path, *mine))["rows"] == 2
    sealed = ("--sealed", "--allow-simulated", "--caller", "cert:alice")
    assert as_json(*asked(named, tmp_path, *mine, *sealed))["attested"]
    evidence = as_json("attest", named, *mine, "--allow-simulated")
    assert (evidence["passed"], evidence["evidence"]["model"]) == (True, "mlp")
    with connect(named, *mine, "--allow-simulated", "--caller", "cert:alice") as (_, said):
        assert ask(said["url"]).status_code == 200


@pytest.mark.parametrize("what", ["no certificate", "no authority"])
def test_the_control_without_them_nothing_comes_in(
    named: str, authority: Authority, alice: Pair, tmp_path: Path, what: str
) -> None:
    mine = shown(authority) if what == "no certificate" else shown(authority, alice)[2:]
    fails(UnavailableError, *asked(named, tmp_path, *mine))
    fails(UnavailableError, "attest", named, *mine)


def test_a_seal_under_another_name_is_refused(named: str, authority: Authority, alice: Pair, tmp_path: Path) -> None:
    words = asked(named, tmp_path, *shown(authority, alice), "--sealed", "--allow-simulated", "--caller", "cert:bob")
    fails(SealedRequestError, *words)


def test_an_audit_comes_in_by_a_certificate(named: str, authority: Authority, alice: Pair, tmp_path: Path) -> None:
    """Past the door its preflight asks the model, and then it wants a reference to grade by."""
    words = ["audit", named, "--plan", "extraction-quick", "-o", str(tmp_path / "report"), "--queries", "1"]
    fails(UnavailableError, *words, *shown(authority))
    assert "--reference" in fails(PlanError, *words, *shown(authority, alice))


@pytest.mark.parametrize("command", ["predict", "attest", "audit", "connect"])
def test_files_that_are_none_are_named(
    listener: Listener, authority: Authority, alice: Pair, tmp_path: Path, command: str
) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    words = words_of(command, listener.near, tmp_path)
    none, missing, key = str(tmp_path / "none.pem"), str(tmp_path / "missing.pem"), str(alice.key)
    assert none in fails(ConfigError, *words, "--tls-ca", none)
    assert missing in fails(ConfigError, *words, "--tls-ca", missing)
    assert none in fails(ConfigError, *words, "--tls-cert", none, "--tls-key", key)
    another = authority.issue("bob", "bob")
    assert str(another.cert) in fails(ConfigError, *words, "--tls-cert", str(another.cert), "--tls-key", key)
    alone = run(*words, "--tls-key", key)
    assert alone.exit_code == 2
    assert "--tls-cert" in alone.output
    assert not listener.keys


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(
    listener: Listener, alice: Pair, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key(alice.key.read_bytes(), None)
    lock = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    words = words_of("predict", listener.near, tmp_path)
    told = fails(ConfigError, *words, "--tls-cert", str(alice.cert), "--tls-key", str(locked))
    assert "unencrypted" in told
