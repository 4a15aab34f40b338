"""`garrison connect` and `garrison predict --sealed`, against a real server with a simulated enclave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.commands import as_json, fails, run, save
from tests.models import BOUNDS, RELEASE, SCORE, images, misinform, seal_mlp
from tests.simulated import serve_simulated

from garrison.errors import AttestationError, ConfigError
from garrison.protocol.oip_client import encode_request


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    sealed = seal_mlp(folder / "mlp", (BOUNDS, SCORE, misinform(0.6), RELEASE))
    with serve_simulated(sealed, state=folder / "state") as (served, _):
        yield served.url


@contextmanager
def connect(url: str, *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [sys.executable, "-m", "garrison", "connect", url, "--port", "0", "--json", *words]
    pipe = subprocess.PIPE
    proxy = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        said = ""
        while not said.endswith("\n}\n"):
            line = proxy.stdout.readline() if proxy.stdout else ""
            if not line:
                pytest.fail(f"the proxy did not start: {proxy.stderr.read() if proxy.stderr else ''}")
            said += line
        yield proxy, json.loads(said)
    finally:
        proxy.kill()
        proxy.communicate()


def ask(local: str) -> httpx.Response:
    body, json_bytes = encode_request({"image": images(2)})
    headers = {"inference-header-content-length": str(json_bytes)}
    return httpx.post(f"{local}/v2/models/mlp/infer", content=body, headers=headers)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_connects_says_so_and_stops(url: str, stop: signal.Signals) -> None:
    with connect(url, "--allow-simulated") as (proxy, said):
        assert said["server"] == url
        response = ask(said["url"])
        assert (response.status_code, response.headers["garrison-attested"]) == (200, "sim")
        proxy.send_signal(stop)
        _, notes = proxy.communicate(timeout=60)
        assert proxy.returncode == 0
    assert "model     mlp, version 1: attested (sim)" in notes
    assert "proves nothing" in notes


def test_by_default_simulation_is_refused_at_once_and_at_each_request(url: str) -> None:
    with connect(url) as (proxy, said):
        response = ask(said["url"])
        assert (response.status_code, response.json()["code"]) == (502, "service.attestation")
        proxy.terminate()
        _, notes = proxy.communicate(timeout=60)
    assert "not attested (service.attestation): the evidence (sim) is not good enough" in notes


def test_a_policy_may_be_given(url: str, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("allow_simulated = true\nleast_version = 2\n")
    with connect(url, "--policy", str(tmp_path / "policy.toml")) as (_, said):
        assert "version" in ask(said["url"]).json()["error"]
    (tmp_path / "policy.toml").write_text("allow_simulation = true\n")
    assert "no attestation policy" in fails(ConfigError, "connect", url, "--policy", str(tmp_path / "policy.toml"))


@pytest.mark.parametrize("words", [["ftp://x"], ["http://127.0.0.1:1", "--api-key", "nonsense"]])
def test_wrong_words(words: list[str]) -> None:
    assert "expected" in fails(ConfigError, "connect", *words)


def test_a_port_that_is_taken(url: str) -> None:
    with connect(url, "--allow-simulated") as (_, said):
        port = said["url"].rpartition(":")[2]
        assert "choose another --port" in fails(ConfigError, "connect", url, "--allow-simulated", "--port", port)


def test_predict_under_seal(url: str, tmp_path: Path) -> None:
    questions = str(save(tmp_path / "x.npz", x=images(3)))
    said = as_json("predict", url, questions, "--sealed", "--allow-simulated")
    assert (said["rows"], said["proved"], said["attested"]) == (3, True, True)
    assert "key attested" in run("predict", url, questions, "--sealed", "--allow-simulated").stderr
    assert "not good enough" in fails(AttestationError, "predict", url, questions, "--sealed")
    assert not as_json("predict", url, questions)["attested"]
