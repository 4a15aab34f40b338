"""`garrison attest`, against a small server that answers as an enclave does."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from tests.attest.worlds import GUARD, KEYS, MANIFEST, OWNER, change
from tests.commands import fails, run
from tests.serving import Bundles, serve

from garrison.attest.evidence import Evidence, report_data
from garrison.cli.attest import MOST_BYTES
from garrison.crypto.canonical import sha256_hex
from garrison.enclave.quotes.sim import SimQuoter
from garrison.errors import AttestationError, ConfigError, UnavailableError


class Enclave:
    """What the server does next."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.body: bytes | None = None
        self.shown: dict[str, Any] = {}
        self.asked: dict[str, list[str]] = {}
        self.authorization: str | None = None

    def answer(self, path: str) -> bytes:
        assert urlsplit(path).path == "/.well-known/garrison/attestation"
        self.asked = parse_qs(urlsplit(path).query)
        if self.body is not None:
            return self.body
        nonce = base64.urlsafe_b64decode(self.asked["nonce"][0] + "=")
        keys = change(KEYS, expires=int(time.time()) + 3600)
        quote = SimQuoter().quote(report_data(keys, nonce, sha256_hex(MANIFEST), GUARD, OWNER))
        evidence = Evidence(
            quote=quote,
            keys=keys,
            nonce=nonce,
            model="digits",
            version=3,
            manifest=MANIFEST,
            guard=GUARD,
            owner=OWNER,
            capabilities={"landlock": "yes"},
        )
        return msgspec.json.encode(change(evidence, **self.shown))


@pytest.fixture
def enclave() -> Iterator[Enclave]:
    found = Enclave()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.authorization = self.headers["authorization"]
            body = found.answer(self.path)
            self.send_response(found.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_simulation_is_refused_and_the_step_is_shown(enclave: Enclave) -> None:
    result = run("attest", enclave.url)
    assert result.exit_code == 1
    assert "NOT good enough" in result.stdout
    assert "technology" in result.stdout
    assert "failed" in result.stdout


def test_a_simulation_is_taken_where_it_is_spelled_out(enclave: Enclave) -> None:
    result = run("attest", enclave.url, "--allow-simulated", "--model", "digits", "--version", "3")
    assert result.exit_code == 0, result.output
    assert enclave.asked["model"] == ["digits"]
    assert enclave.asked["version"] == ["3"]
    assert "digits version 3" in result.stdout
    assert "proves nothing" in result.stderr
    assert "landlock yes" in result.stderr
    assert OWNER in result.stdout


@pytest.mark.parametrize(("option", "asked"), [("--model", "other"), ("--version", "2")])
def test_evidence_of_another_model_than_asked_is_refused(enclave: Enclave, option: str, asked: str) -> None:
    assert "digits version 3" in fails(AttestationError, "attest", enclave.url, "--allow-simulated", option, asked)


def test_the_api_key_goes_along(enclave: Enclave) -> None:
    run("attest", enclave.url, "--allow-simulated", "--api-key", "gk_me_secret")
    assert enclave.authorization == "Bearer gk_me_secret"


@pytest.mark.parametrize(
    ("url", "key"), [("http://127.0.0.1:1", "k\u00e4y"), ("http://127.0.0.1:1", "a b"), ("nowhere", "k")]
)
def test_what_cannot_be_asked_is_said_before_anything_is_sent(url: str, key: str) -> None:
    told = fails(ConfigError, "attest", url, "--api-key", key)
    assert key not in told or key == "k"


def test_evidence_does_not_go_by_a_proxy_of_the_environment(enclave: Enclave, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the key: `garrison predict` does not either."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert run("attest", enclave.url, "--allow-simulated").exit_code == 0


def test_a_host_cannot_paint_over_the_verdict(enclave: Enclave) -> None:
    """A name with the terminal's own commands in it: go to the start of the line, erase it, write something else."""
    enclave.shown = {"model": "x\x1b[2K\rgood enough", "capabilities": {"landlock": "\x9b2J\x07"}}
    result = run("attest", enclave.url)
    assert result.exit_code == 1
    assert "NOT good enough x\N{REPLACEMENT CHARACTER}[2K" in result.stdout
    assert not set("\x1b\r\x9b\x07") & set(result.stdout + result.stderr)


def test_every_question_has_a_nonce_of_its_own(enclave: Enclave) -> None:
    nonces = set()
    for _ in range(3):
        run("attest", enclave.url, "--allow-simulated")
        nonces.add(enclave.asked["nonce"][0])
    assert len(nonces) == 3


@pytest.mark.parametrize(
    ("shown", "step"),
    [({"nonce": b"x" * 32}, "nonce"), ({"guard": "ab" * 32}, "report-data"), ({"version": 4}, "manifest")],
)
def test_lies_are_refused_with_a_report_for_machines(enclave: Enclave, shown: dict[str, Any], step: str) -> None:
    enclave.shown = shown
    result = run("attest", enclave.url, "--allow-simulated", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["passed"]
    assert step in [s["name"] for s in found["report"]["steps"] if s["status"] == "failed"]
    enclave.shown = {}
    assert run("attest", enclave.url, "--allow-simulated", "--json").exit_code == 0


def test_a_policy_file(enclave: Enclave, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("allow_simulated = true\nleast_version = 4\n")
    assert run("attest", enclave.url, "--policy", str(policy)).exit_code == 1
    policy.write_text("allow_simulated = true\nleast_version = 3\n")
    assert run("attest", enclave.url, "--policy", str(policy)).exit_code == 0
    policy.write_text("allow_simulation = true\n")
    assert "allow_simulation" in fails(ConfigError, "attest", enclave.url, "--policy", str(policy))


def test_a_server_without_evidence(enclave: Enclave) -> None:
    enclave.status, enclave.body = 404, b'{"error": "no enclave"}'
    assert "no enclave" in fails(AttestationError, "attest", enclave.url)
    enclave.status = 503
    fails(UnavailableError, "attest", enclave.url)
    enclave.status = 200
    for body in (b"", b"{}", b"\xff", b"<html>"):
        enclave.body = body
        assert "no evidence that can be read" in fails(AttestationError, "attest", enclave.url)
    enclave.body = b" " * (MOST_BYTES + 1)
    assert "longer" in fails(AttestationError, "attest", enclave.url)
    fails(UnavailableError, "attest", "http://127.0.0.1:1")


def test_collateral_of_ones_own_must_be_a_file(enclave: Enclave, tmp_path: Path) -> None:
    (tmp_path / "vcek").write_bytes(b"x")
    good = run("attest", enclave.url, "--allow-simulated", "--collateral", f"vcek={tmp_path / 'vcek'}")
    assert good.exit_code == 0, good.output
    assert run("attest", enclave.url, "--collateral", f"vcek={tmp_path / 'none'}").exit_code == 2


def test_against_a_real_server(bundles: Bundles, tmp_path: Path) -> None:
    with serve(bundles, "mlp-1", "mlp-2", state=tmp_path, isolation="process") as served:
        words = ["attest", served.url, "--model", "mlp", "--allow-simulated"]
        newest = run(*words, "--json")
        assert newest.exit_code == 0, newest.output
        found = json.loads(newest.stdout)
        assert (found["evidence"]["version"], found["report"]["technology"]) == (2, "sim")
        assert run(*words, "--version", "1").exit_code == 0
        assert run("attest", served.url, "--model", "mlp").exit_code == 1, "the default refuses a simulation"
        policy = tmp_path / "policy.toml"
        policy.write_text('least_version = 2\nmodel = "mlp"\n')
        assert run(*words, "--policy", str(policy)).exit_code == 0
        assert run(*words, "--policy", str(policy), "--version", "1").exit_code == 1, "rollback"
        assert "unknown model" in fails(AttestationError, "attest", served.url, "--model", "other")


def test_a_server_without_an_enclave_has_no_evidence(bundles: Bundles, tmp_path: Path) -> None:
    with serve(bundles, "mlp-1", state=tmp_path) as served:
        assert "no evidence" in fails(AttestationError, "attest", served.url)
