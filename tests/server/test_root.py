"""A server starts only as safe as asked, and stops without losing what it has begun."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from msgspec import structs
from tests.models import images
from tests.serving import Bundles, command, serve
from tests.stalls import PATIENT_SECONDS, wait_until

from garrison.config import Config, LedgerConfig, OperationsConfig, ServerConfig
from garrison.crypto.owner import OwnerKey
from garrison.enclave.backends.process import ProcessEnclave
from garrison.errors import BundleError, ChangedFileError, ConfigError, GuardError, KeyFileError, UntrustedKeyError
from garrison.limits import Limits
from garrison.protocol.oip_client import encode_request
from garrison.server.launching import check_exposure
from garrison.server.listening import listen
from garrison.server.questions import LENGTH_HEADER
from garrison.server.root import assemble, background


def config(tmp_path: Path, guard: dict[str, dict[str, Any]] | None = None, **server: Any) -> Config:
    server = {"isolation": "none"} | server
    return Config(server=ServerConfig(port=0, state=str(tmp_path / "state"), **server), guard=guard or {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_beyond_this_machine_only_with_keys_or_on_purpose(host: str) -> None:
    with pytest.raises(ConfigError, match="without a key"):
        check_exposure(Config(server=ServerConfig(host=host, insecure_plaintext=True)))
    check_exposure(Config(server=ServerConfig(host=host, keys="keys.json", insecure_plaintext=True)))
    check_exposure(Config(server=ServerConfig(host=host, allow_anonymous=True, insecure_plaintext=True)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_beyond_this_machine_only_with_tls_or_on_purpose(host: str) -> None:
    with pytest.raises(ConfigError, match="without TLS"):
        check_exposure(Config(server=ServerConfig(host=host, keys="keys.json")))
    check_exposure(Config(server=ServerConfig(host=host, keys="keys.json", tls_cert="a.pem", tls_key="a.key")))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_no_keys(host: str) -> None:
    check_exposure(Config(server=ServerConfig(host=host)))


@pytest.mark.parametrize(
    ("host", "beyond"),
    [("0.0.0.0", True), ("[::]", True), ("::", True), ("192.0.2.1", True), ("127.0.0.1", False), ("[::1]", False), ("localhost", False)],
)  # fmt: skip
def test_metrics_are_told_beyond_this_machine_only_on_purpose(host: str, beyond: bool) -> None:
    for metrics_open in (False, True):
        config = Config(operations=OperationsConfig(metrics=f"{host}:9464", metrics_open=metrics_open))
        with pytest.raises(ConfigError, match="metrics_open") if beyond and not metrics_open else nullcontext():
            check_exposure(config)


def test_a_taken_port_is_noticed() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(ConfigError, match="choose another --port"):
        listen("127.0.0.1", first.getsockname()[1])
    with pytest.raises(ConfigError, match="cannot listen"):
        listen("192.0.2.1", 0)


def test_ipv6_works(bundles: Bundles, tmp_path: Path) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with serve(bundles, "metered", state=tmp_path, host="::1") as running:
        assert "[::1]" in running.url
        assert running.infer(images(3), "/v2/models/metered/infer").status_code == 200
        book = running.assembly.book
        assert book is not None
        assert book.remaining("metered", "ip:::/64", "ever", 100) == 97


def test_a_bundle_with_a_flipped_byte_is_not_served(bundles: Bundles, tmp_path: Path) -> None:
    sealed = bundles.sealed["mlp-1"]
    copy = tmp_path / "bundle"
    shutil.copytree(sealed.path, copy)
    shutil.copy(sealed.path.with_name(sealed.path.name + ".secret"), tmp_path / "bundle.secret")
    good = assemble(config(tmp_path), [copy], [sealed.owner.public])
    good.close()
    part = next((copy / "parameters").iterdir())
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    with pytest.raises(ChangedFileError, match=part.name):
        assemble(config(tmp_path), [copy], [sealed.owner.public])


def test_only_trusted_bundles_are_served(bundles: Bundles, tmp_path: Path) -> None:
    path = bundles.sealed["mlp-1"].path
    with pytest.raises(UntrustedKeyError):
        assemble(config(tmp_path), [path], [OwnerKey.generate().public])
    with pytest.raises(BundleError, match="no trusted key"):
        assemble(config(tmp_path), [path], [])
    with pytest.raises(BundleError):
        assemble(config(tmp_path), [tmp_path / "nothing"], [bundles.owner.public])


def test_models_must_be_there_once(bundles: Bundles, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="version 1 is given twice"):
        assemble(config(tmp_path), bundles.paths("mlp-1", "mlp-1"), [bundles.owner.public])
    with pytest.raises(ConfigError, match="no model"):
        assemble(config(tmp_path), [], [bundles.owner.public])
    with pytest.raises(ConfigError, match="unknown isolation 'magic'"):
        assemble(config(tmp_path, isolation="magic"), bundles.paths("mlp-1"), [bundles.owner.public])
    with pytest.raises(ConfigError, match="takes --isolation process"):
        assemble(config(tmp_path, secret_heap=True), bundles.paths("mlp-1"), [bundles.owner.public])


def test_the_misinformation_key_is_found_beside_the_bundle_or_named(bundles: Bundles, tmp_path: Path) -> None:
    sealed, plain = bundles.sealed["mlp-1"], bundles.sealed["plain"]
    moved = tmp_path / "elsewhere"
    shutil.copytree(sealed.path, moved)
    trusted = [bundles.owner.public]
    with pytest.raises(KeyFileError, match="name its file with --secret"):
        assemble(config(tmp_path), [moved], trusted)
    secret = sealed.path.with_name(sealed.path.name + ".secret")
    assemble(config(tmp_path, secret=(str(secret),)), [moved, plain.path], trusted).close()
    other = tmp_path / "wrong.secret"
    other.write_text("# wrong\n" + "A" * 43 + "=\n")
    other.chmod(0o600)
    with pytest.raises(KeyFileError, match="not the misinformation key"):
        assemble(config(tmp_path, secret=(str(other),)), [moved], trusted)
    assemble(config(tmp_path, secret=(str(other), str(secret))), [moved], trusted).close()


@pytest.mark.parametrize("trap", ["pipe", "endless"])
def test_a_trap_in_place_of_the_manifest_is_refused_at_once(bundles: Bundles, tmp_path: Path, trap: str) -> None:
    """Before the bundle is verified the server looks who it is for: that must neither hang nor fill the memory."""
    copy = shutil.copytree(bundles.sealed["mlp-1"].path, tmp_path / "bundle")
    manifest = copy / "manifest.json"
    manifest.unlink()
    if trap == "pipe":
        os.mkfifo(manifest)
    else:
        manifest.symlink_to("/dev/zero")
    started = time.monotonic()
    with pytest.raises(BundleError):
        assemble(config(tmp_path), [copy], [bundles.owner.public])
    assert time.monotonic() - started < 30


def test_a_host_may_tighten_and_not_loosen(bundles: Bundles, tmp_path: Path) -> None:
    trusted = [bundles.owner.public]
    everything = bundles.paths("mlp-1", "metered")
    tightened = assemble(config(tmp_path, {"release": {"mode": "labels"}, "budget": {"rows": 5}}), everything, trusted)
    outputs = {model.name: [output.name for output in model.card.outputs] for model in tightened.hosting}
    assert outputs == {"mlp": ["classes"], "metered": ["classes"]}
    assert {model.name: model.card.budget_rows for model in tightened.hosting} == {"mlp": 0, "metered": 5}
    signed = bundles.sealed["mlp-1"].verified().manifest.guard_digest()
    assert tightened.hosting.default("mlp").card.guard_digest != signed
    tightened.close()
    with pytest.raises(GuardError, match="only tighten"):
        assemble(config(tmp_path, {"budget": {"rows": 101}}), everything, trusted)
    with pytest.raises(GuardError, match="only tighten"):
        assemble(config(tmp_path, {"release": {"mode": "full"}}), bundles.paths("plain"), trusted)
    with pytest.raises(ConfigError, match=r"guard\.budgte: no model here has such a defense"):
        assemble(config(tmp_path, {"budgte": {"rows": 1}}), everything, trusted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_graceful_stop_finishes_what_is_in_flight(bundles: Bundles, tmp_path: Path, number: signal.Signals) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(f"[limits]\nstop_seconds = {PATIENT_SECONDS}\n")
    with command(bundles, "metered", tmp_path, "--config", str(settings)) as (server, ready):
        parts = urlsplit(ready["url"])
        body = json.dumps(
            {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}]}
        ).encode()
        address = parts.hostname or "", parts.port or 0
        with (
            socket.create_connection(address, timeout=PATIENT_SECONDS) as connection,
            socket.create_connection(address, timeout=PATIENT_SECONDS),  # idle: must not hold it up
        ):
            begin(connection, len(body))
            connection.sendall(body[:100])
            start = time.monotonic()
            server.send_signal(number)
            wait_until(lambda: not listens(ready["url"]))
            assert server.poll() is None
            connection.sendall(body[100:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert server.wait(timeout=PATIENT_SECONDS) == 0
        assert time.monotonic() - start < PATIENT_SECONDS / 2


def begin(connection: socket.socket, length: int) -> None:
    """A request of which the server has the head, and waits for the body."""
    head = f"POST /v2/models/metered/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
    connection.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"


def listens(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v2/health/live").status_code == 200
    except httpx.TransportError:
        return False


def test_a_stop_does_not_wait_for_ever(bundles: Bundles, tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("[limits]\nstop_seconds = 0.5\n")
    with command(bundles, "metered", tmp_path, "--config", str(settings)) as (server, ready):
        parts = urlsplit(ready["url"])
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PATIENT_SECONDS) as connection:
            begin(connection, 9)
            connection.sendall(b"half")
            start = time.monotonic()
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=PATIENT_SECONDS) == 0
            assert 0.3 < time.monotonic() - start < PATIENT_SECONDS / 2


def test_a_stop_while_an_answer_is_awaited_comes_to_its_end(bundles: Bundles, tmp_path: Path) -> None:
    """The ledger has last words for the enclave then, over the pipe in which the answer will lie."""
    ledger, limits = LedgerConfig(folder=str(tmp_path / "ledger")), Limits(stop_seconds=0.1)
    here = structs.replace(config(tmp_path, isolation="process"), ledger=ledger, limits=limits)
    assembly = assemble(here, bundles.paths("plain"), [bundles.owner.public])
    enclave, ended = assembly.enclaves[0], threading.Event()
    assert isinstance(enclave, ProcessEnclave)
    body, length = encode_request({"image": images(2)})

    def work() -> None:
        with background(assembly) as url:
            good = httpx.post(f"{url}/v2/models/plain/infer", content=body, headers={LENGTH_HEADER: str(length)})
            assert good.status_code == 200
            address = urlsplit(url).hostname, urlsplit(url).port
            os.kill(enclave.process_id, signal.SIGSTOP)
            with socket.create_connection(address) as gone:
                gone.sendall(
                    f"POST /v2/models/plain/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
                    f"{LENGTH_HEADER}: {length}\r\n\r\n".encode()
                    + body
                )
                wait_until(lambda: assembly.hosting.default("plain").batcher._working)
            threading.Timer(0.5, os.kill, (enclave.process_id, signal.SIGCONT)).start()
        ended.set()

    threading.Thread(target=work, daemon=True).start()
    assert ended.wait(2 * PATIENT_SECONDS)


def test_a_stop_under_load_loses_no_answer(bundles: Bundles, tmp_path: Path) -> None:
    """Every request is either answered in full or never reached the server."""
    with command(bundles, "metered", tmp_path, "--release", "label") as (server, ready):
        assert ready["models"][0]["outputs"] == ["classes"]
        broken: list[str] = []
        answered = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=ready["url"]) as client:
                while True:
                    try:
                        status = client.get("/v2/models/metered").status_code
                    except httpx.ConnectError:
                        return
                    except httpx.HTTPError as error:
                        # A connection that was kept open may be closed while the next request is on its way.
                        broken.append(type(error).__name__)
                        return
                    if status != 200:
                        broken.append(str(status))
                        return
                    answered.set()

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert answered.wait(PATIENT_SECONDS)
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=PATIENT_SECONDS) == 0
        for thread in threads:
            thread.join()
    assert set(broken) <= {"ReadError", "RemoteProtocolError", "WriteError"}
