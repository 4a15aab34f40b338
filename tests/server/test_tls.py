"""TLS on a real port: 1.3 alone, and what a client's certificate is good for."""

from __future__ import annotations

import contextlib
import datetime as dt
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tests.models import images
from tests.server.pki import Authority, Pair
from tests.serving import Bundles, Served, command, serve
from tests.stalls import again_after_a_stall

from garrison.config import ServerConfig
from garrison.errors import ConfigError
from garrison.limits import Limits
from garrison.protocol.oip_client import encode_request
from garrison.server.auth import add_key, rotate_key
from garrison.server.client_names import name_in
from garrison.server.tls import certificates

GONE = (httpx.TransportError, ssl.SSLError, OSError)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def server_pair(authority: Authority) -> Pair:
    return authority.issue("server", "garrison")


def settings(server: Pair, clients: Authority | None = None) -> dict[str, Any]:
    """TLS as the server's settings have it; with an authority, clients need a certificate of it."""
    own: dict[str, Any] = {"tls_cert": str(server.cert), "tls_key": str(server.key)}
    return own if clients is None else own | {"tls_client_ca": str(clients.file)}


def ask(
    running: Served, context: ssl.SSLContext, path: str = "/v2/models/plain/infer", **headers: str
) -> httpx.Response:
    body, length = encode_request({"image": images(2)})
    with httpx.Client(verify=context) as client:
        sent = {"inference-header-content-length": str(length)} | headers
        return client.post(running.url + path, content=body, headers=sent)


@pytest.fixture(scope="module")
def https(
    bundles: Bundles, authority: Authority, server_pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with serve(bundles, "plain", state=tmp_path_factory.mktemp("state"), **settings(server_pair)) as running:
        yield running


def test_a_service_is_served_over_tls(https: Served, authority: Authority) -> None:
    assert https.url.startswith("https://")
    assert ask(https, authority.trusting()).status_code == 200


def test_nothing_older_than_tls_1_3(https: Served, authority: Authority) -> None:
    host, port = urlsplit(https.url).hostname, urlsplit(https.url).port
    old = authority.trusting()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection((host, port)) as raw, pytest.raises(ssl.SSLError):
        old.wrap_socket(raw, server_hostname=host)
    with (
        socket.create_connection((host, port)) as raw,
        authority.trusting().wrap_socket(raw, server_hostname=host) as good,
    ):
        assert good.version() == "TLSv1.3"  # control


def test_plain_http_to_a_tls_port_is_not_answered(https: Served) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(https.url.replace("https", "http") + "/v2/health/live")


def test_a_client_notices_another_server(https: Served, tmp_path: Path) -> None:
    with pytest.raises(httpx.ConnectError):
        ask(https, Authority(tmp_path).trusting())


@pytest.mark.parametrize(("names", "most_seconds"), [(False, 20.0), (True, 8.0)], ids=["granian", "names"])
@again_after_a_stall
def test_who_never_finishes_the_handshake_is_shown_out(
    bundles: Bundles, authority: Authority, server_pair: Pair, tmp_path: Path, names: bool, most_seconds: float
) -> None:
    """The web server gives a handshake ten seconds, whatever it is told. Who has brought a request stays, however long its answer takes."""
    files = settings(server_pair, authority) | {"tls_client_names": True} if names else settings(server_pair)
    context = authority.trusting(authority.issue("alice", "alice"))
    limits = Limits(header_read_seconds=1.5)
    with (
        serve(bundles, "plain", state=tmp_path, limits=limits, **files) as running,
        contextlib.ExitStack() as connections,
    ):
        address = urlsplit(running.url).hostname, urlsplit(running.url).port
        slow = connections.enter_context(
            context.wrap_socket(socket.create_connection(address), server_hostname="127.0.0.1")
        )
        slow.send(b"POST /v2/models/plain/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n")
        idle = [connections.enter_context(socket.create_connection(address)) for _ in range(50)]
        for connection in idle[::2]:
            connection.send(b"\x16\x03\x01")  # a handshake begins
        began = time.monotonic()
        assert ask(running, context).status_code == 200  # they keep nobody out
        for connection in idle:
            connection.settimeout(most_seconds)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1000)[1:3] in {b"", b"\x03\x03"}  # closed, perhaps with an alert
        assert time.monotonic() - began < most_seconds
        slow.send(b"not a req")
        assert slow.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("names", [False, True], ids=["admission", "names"])
def test_without_a_good_certificate_nobody_comes_in(
    bundles: Bundles, authority: Authority, server_pair: Pair, tmp_path: Path, names: bool
) -> None:
    stranger = Authority(tmp_path / "other", "other authority")
    clients = {
        "none": None,
        "of another authority": stranger.issue("mallory", "alice"),
        "ended": authority.issue("ended", "alice", life=-dt.timedelta(minutes=1)),
        "a server's": server_pair,
    }
    files = settings(server_pair, authority)
    with serve(bundles, "plain", state=tmp_path, tls_client_names=names, **files) as running:
        assert ask(running, authority.trusting(authority.issue("alice", "alice"))).status_code == 200  # control
        for what, pair in clients.items():
            try:
                found = ask(running, authority.trusting(pair)).status_code
            except GONE:
                found = 0
            assert found == 0, what


def test_a_certificate_names_its_caller(
    bundles: Bundles, authority: Authority, server_pair: Pair, tmp_path: Path
) -> None:
    files = settings(server_pair, authority)
    with serve(bundles, "metered", state=tmp_path, tls_client_names=True, **files) as running:
        book = running.assembly.book
        assert book is not None
        path = "/v2/models/metered/infer"
        alice, bob = (authority.trusting(authority.issue(name, name)) for name in ("alice", "bob"))
        for _ in range(3):
            assert ask(running, alice, path).status_code == 200
        claimed = {
            "x-forwarded-for": "127.0.0.1",
            "x-client-cert": "alice",
            "x-ssl-client-s-dn": "CN=alice",
            "forwarded": "for=alice",
        }
        assert ask(running, bob, path, **claimed).status_code == 200
        assert book.remaining("metered", "cert:alice", "ever", 100) == 94
        assert book.remaining("metered", "cert:bob", "ever", 100) == 98
        spiffe = authority.issue("uri", "bob", uris=("spiffe://example.org/bob",))
        assert ask(running, authority.trusting(spiffe), path).status_code == 200
        assert book.remaining("metered", "cert:spiffe://example.org/bob", "ever", 100) == 98
        for pair in (authority.issue("two", "alice", "bob"), authority.issue("odd", "alice bob")):
            with pytest.raises(GONE):
                ask(running, authority.trusting(pair), path)


@pytest.mark.slow
def test_several_front_workers_name_callers_by_certificate_and_read_keys_again(
    bundles: Bundles, authority: Authority, server_pair: Pair, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    key = add_key(file, "alice")
    words = ["--workers", "2", "--keys", str(file), "--tls-client-names"]
    for name, value in settings(server_pair, authority).items():
        words += [f"--{name.replace('_', '-')}", value]
    alice = authority.trusting(authority.issue("alice", "alice"))
    with command(bundles, "plain", tmp_path, *words) as (process, told):
        assert told["client_certificates"] == "names"

        def codes(shown: str) -> set[int]:
            page, header = f"{told['url']}/v2/models/plain", {"authorization": f"Bearer {shown}"}
            return {httpx.get(page, headers=header, verify=alice).status_code for _ in range(12)}

        assert codes(key) == {200}
        new = rotate_key(file, "alice", overlap=dt.timedelta(0))
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while codes(new) != {200} and time.monotonic() < deadline:
            time.sleep(0.05)
        assert codes(new) == {200}
        assert codes(key) == {401}
        assert process.poll() is None


def test_who_finds_the_inner_socket_is_nobody(
    bundles: Bundles, authority: Authority, server_pair: Pair, tmp_path: Path
) -> None:
    """Everybody on this machine can connect to it."""
    files = settings(server_pair, authority)
    before = listening()
    with serve(bundles, "plain", state=tmp_path, tls_client_names=True, **files) as running:
        outer = urlsplit(running.url).port
        (inner,) = [port for port in listening() - before if port != outer]
        body, length = encode_request({"image": images(1)})
        sent = {"inference-header-content-length": str(length)}
        answer = httpx.post(f"http://127.0.0.1:{inner}/v2/models/plain/infer", content=body, headers=sent)
        assert (answer.status_code, answer.json()["code"]) == (401, "request.unauthenticated")
        assert ask(running, authority.trusting(authority.issue("alice", "alice"))).status_code == 200  # control


def test_large_bodies_pass_and_keep_alive_holds(
    bundles: Bundles, authority: Authority, server_pair: Pair, tmp_path: Path
) -> None:
    files = settings(server_pair, authority)
    with serve(bundles, "plain", state=tmp_path, tls_client_names=True, **files) as running:
        names = running.assembly.names
        assert names is not None
        context = authority.trusting(authority.issue("alice", "alice"))
        with httpx.Client(verify=context) as client:
            for rows in (1, 700, 1):
                body, length = encode_request({"image": images(rows)})
                sent = {"inference-header-content-length": str(length)}
                answer = client.post(f"{running.url}/v2/models/plain/infer", content=body, headers=sent)
                assert answer.status_code == 200
            assert len(names._names) == 1  # one connection carried them all
        deadline = time.monotonic() + 30
        while names._names and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not names._names


def test_a_key_must_be_its_owners(bundles: Bundles, authority: Authority, server_pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    keys = {name: add_key(file, name) for name in ("alice", "bob")}
    files = settings(server_pair, authority)
    with serve(bundles, "plain", state=tmp_path, tls_client_names=True, keys=str(file), **files) as running:
        alice = authority.trusting(authority.issue("alice", "alice"))
        assert ask(running, alice, authorization=f"Bearer {keys['alice']}").status_code == 200
        assert ask(running, alice, authorization=f"Bearer {keys['bob']}").status_code == 401
        assert ask(running, alice).status_code == 401


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tls_cert": "a"}, "go together"),
        ({"tls_client_ca": "a"}, "needs tls_cert"),
        ({"tls_cert": "a", "tls_key": "b", "tls_client_names": True}, "needs tls_client_ca"),
    ],
)
def test_settings_that_would_leave_a_hole_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerConfig(**given)  # type: ignore[arg-type]


def test_files_are_looked_at_before_anything_is_served(authority: Authority, server_pair: Pair, tmp_path: Path) -> None:
    good = settings(server_pair)
    assert certificates(ServerConfig()) is None
    found = certificates(ServerConfig(**settings(server_pair, authority)))
    assert found is not None
    assert found.of_granian()["ssl_client_verify"] is True  # never one without the other
    other = authority.issue("other", "other")
    empty = tmp_path / "empty.pem"
    empty.touch()
    for given in (
        good | {"tls_key": str(other.key)},
        good | {"tls_cert": str(tmp_path / "none.pem")},
        good | {"tls_client_ca": str(empty)},
        good | {"tls_client_ca": str(tmp_path / "none.pem")},
    ):
        with pytest.raises(ConfigError, match=r"server\.tls"):
            certificates(ServerConfig(**given))
    other.key.chmod(0o604)
    with pytest.raises(ConfigError, match="everybody"):
        certificates(ServerConfig(tls_cert=str(other.cert), tls_key=str(other.key)))


@pytest.mark.parametrize(
    ("certificate", "name"),
    [
        ({"subject": ((("commonName", "alice"),),)}, "alice"),
        ({"subject": ((("commonName", "alice"),),), "subjectAltName": (("URI", "spiffe://a/b"),)}, "spiffe://a/b"),
        ({"subject": ((("commonName", "alice"),),), "subjectAltName": (("URI", "a:b"), ("URI", "c:d"))}, None),
        ({"subject": ((("commonName", "alice"),), (("commonName", "bob"),))}, None),
        ({"subject": ((("organizationName", "alice"),),)}, None),
        ({"subject": ((("commonName", "al\x00ice"),),)}, None),
        ({"subject": ((("commonName", "\u0430lice"),),)}, None),
        ({"subject": ((("commonName", "a" * 201),),)}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_name_is_plain_and_one(certificate: object, name: str | None) -> None:
    assert name_in(certificate) == name


def listening() -> set[int]:
    """TCP ports of this process at which somebody listens."""
    inodes = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A" and line[9] in inodes}
