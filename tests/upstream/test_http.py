"""Kept connections, deadlines and bounds, against a server that does what a test says, byte by byte."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.stalls import PATIENT_SECONDS

from garrison.errors import ConfigError, GarrisonError, PlaintextKeyError, UnavailableError, UpstreamError
from garrison.protocol.http_messages import Request
from garrison.upstream.http import Connections, parse_url

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
ASK = Request("POST", "/x", {}, b"body")
Script = Callable[[socket.socket, int], None]


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    """Runs `script(connection, number)` for each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()

    def work() -> None:
        number = 0
        while not stopping.is_set():
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(stream, number), daemon=True).start()
            number += 1

    def one(stream: socket.socket, number: int) -> None:
        with stream:
            try:
                script(stream, number)
            except OSError:
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopping.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def answering(*answers: bytes) -> Script:
    """Each request of a connection gets the next answer; then the connection ends."""

    def script(stream: socket.socket, number: int) -> None:
        for answer in answers:
            if not stream.recv(65536):
                return
            stream.sendall(answer)

    return script


@contextmanager
def connections(url: str, most_bytes: int = 1000, most: int = 4) -> Iterator[Connections]:
    found = Connections(url, most_bytes=most_bytes, most=most)
    try:
        yield found
    finally:
        found.close()


def test_a_connection_is_kept() -> None:
    with scripted(answering(OK, OK, OK)) as url, connections(url) as found:
        assert [found.ask(ASK, PATIENT_SECONDS).body for _ in range(3)] == [b"hi"] * 3
        assert found.opened == 1


def test_a_kept_connection_that_has_ended_is_opened_anew() -> None:
    with scripted(answering(OK)) as url, connections(url) as found:
        assert [found.ask(ASK, PATIENT_SECONDS).status for _ in range(3)] == [200] * 3
        assert found.opened == 3


def test_questions_side_by_side_keep_their_order() -> None:
    def script(stream: socket.socket, number: int) -> None:
        while data := stream.recv(65536):
            name = data.split(b" ")[1]
            time.sleep(0.05 if name == b"/0" else 0)
            stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n" + name)

    with scripted(script) as url, connections(url) as found:
        answers = found.ask_many([Request("GET", f"/{k}") for k in range(10)], PATIENT_SECONDS)
        assert [a.body.decode() for a in answers] == [f"/{k}" for k in range(10)]
        assert found.opened == 4


def test_chunks_are_joined_and_a_length_is_not_needed() -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    script = answering(chunked, b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nend")
    with scripted(script) as url, connections(url) as found:
        assert [found.ask(ASK, PATIENT_SECONDS).body for _ in range(2)] == [b"abc", b"end"]


def dripping(stream: socket.socket, number: int) -> None:
    """A byte now and then: each comes in time, the whole never does."""
    stream.recv(65536)
    for byte in OK * 1000:
        stream.sendall(bytes([byte]))
        time.sleep(0.02)


def silent(stream: socket.socket, number: int) -> None:
    while stream.recv(65536):
        pass


@pytest.mark.parametrize("script", [dripping, silent])
def test_a_deadline_holds_for_the_whole_exchange(script: Script) -> None:
    with scripted(script) as url, connections(url) as found:
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="in time"):
            found.ask(ASK, 0.4)
        assert time.monotonic() - started < 15.0  # what drips takes much longer


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", UpstreamError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", UpstreamError),
        (b"SMTP ready\r\n\r\n", UpstreamError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef", UpstreamError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n", UpstreamError),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000, UpstreamError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n" + b"a" * 2000, UpstreamError),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7d0\r\n" + b"a" * 2000 + b"\r\n0\r\n\r\n",
            UpstreamError,
        ),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", UpstreamError),
    ],
)
def test_what_is_no_answer_is_refused_and_not_told(answer: bytes, kind: type[GarrisonError]) -> None:
    with scripted(answering(answer)) as url, connections(url) as found:
        with pytest.raises(kind) as error:
            found.ask(ASK, PATIENT_SECONDS)
        assert "SMTP" not in str(error.value)
        assert "aaa" not in str(error.value)


def test_more_than_the_answer_ends_the_connection() -> None:
    """Bytes that nobody asked for must not become the next request's answer."""
    with scripted(answering(OK + OK, OK)) as url, connections(url) as found:
        assert [found.ask(ASK, PATIENT_SECONDS).status for _ in range(2)] == [200, 200]
        assert found.opened == 2


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with connections(url) as found, pytest.raises(UnavailableError, match="cannot be reached"):
        found.ask(ASK, PATIENT_SECONDS)


def test_the_key_is_not_shown_in_the_open_beyond_this_machine() -> None:
    with pytest.raises(PlaintextKeyError, match="--upstream-insecure-plaintext") as told:
        Connections("http://models.example", key="secret-key", most_bytes=100, most=1)
    assert "secret-key" not in str(told.value)
    for url, key, meant in (
        ("https://models.example", "secret-key", False),
        ("http://models.example", "", False),
        ("http://models.example", "secret-key", True),
        ("http://[::1]:8000", "secret-key", False),
    ):
        Connections(url, key=key, insecure_plaintext=meant, most_bytes=100, most=1)


def test_the_key_is_shown_and_stays_out_of_messages() -> None:
    seen: list[bytes] = []

    def script(stream: socket.socket, number: int) -> None:
        seen.append(stream.recv(65536))
        stream.sendall(OK)

    with scripted(script) as url:
        found = Connections(url, key="secret-key", most_bytes=100, most=1)
        found.ask(ASK, PATIENT_SECONDS)
        found.close()
    assert b"authorization: Bearer secret-key\r\n" in seen[0].replace(b"Authorization", b"authorization")
    with pytest.raises(ConfigError) as error:
        Connections(url, key="secret\r\nx: y", most_bytes=100, most=1)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:80",
        "ftp://a",
        "http://",
        "http://a:99999",
        "http://a:0",
        "http://u:p@a",
        "http://a/?q",
        "http://a b",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="expected the server's URL"):
        parse_url(url)


def test_urls() -> None:
    found = parse_url("https://[::1]:8443/models/")
    assert (found.host, found.port, found.tls, found.path, found.name) == ("::1", 8443, True, "/models", "[::1]:8443")
    assert parse_url("http://host").port == 80


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 that vouches for itself, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "model server")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file: Path = tmp_path_factory.mktemp("tls") / "server.pem"
    file.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return file


def test_https_needs_a_certificate_that_holds(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    large = b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n" + b"a" * 300_000

    def script(stream: socket.socket, number: int) -> None:
        with context.wrap_socket(stream, server_side=True) as secure:
            answering(OK, large)(secure, number)

    with scripted(script) as url:
        url = url.replace("http:", "https:")
        found = Connections(url, authorities=certificate, most_bytes=400_000, most=1)
        assert [len(found.ask(ASK, PATIENT_SECONDS).body) for _ in range(2)] == [2, 300_000]
        assert found.opened == 1
        found.close()
        with connections(url) as strict, pytest.raises(UpstreamError, match="certificate"):
            strict.ask(ASK, PATIENT_SECONDS)
    with pytest.raises(ConfigError, match="certificates"):
        Connections(url, authorities=certificate.parent / "none", most_bytes=1, most=1)
