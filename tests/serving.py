"""Real sealed models behind a real server on a real port."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from garrison.config import Config, ServerConfig
from garrison.crypto.owner import OwnerKey
from garrison.limits import Limits
from garrison.protocol.oip_client import encode_request
from garrison.server.root import Assembly, assemble, background
from garrison.types import Array, DefenseSpec
from tests.models import BOUNDS, RELEASE, SCORE, Sealed, images, misinform, seal_mlp
from tests.stalls import PATIENT_SECONDS

DAY_SECONDS = 86_400
LABELS_ONLY = DefenseSpec(name="release", parameters={"mode": "labels"})


def budget(rows: int, period: str = "ever") -> DefenseSpec:
    return DefenseSpec(name="budget", parameters={"rows": rows, "period": period})


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    url: str
    assembly: Assembly

    def infer(self, x: Array | None = None, path: str = "/v2/models/mlp/infer", **headers: str) -> httpx.Response:
        body, json_bytes = encode_request({"image": images(2) if x is None else x})
        sent = {"inference-header-content-length": str(json_bytes)} | headers
        return httpx.post(self.url + path, content=body, headers=sent, timeout=PATIENT_SECONDS)


@dataclass(frozen=True, slots=True)
class Bundles:
    """Two versions of one model, one without misinformation, one with a small budget; all of one owner."""

    folder: Path
    owner: OwnerKey
    sealed: dict[str, Sealed]

    def paths(self, *names: str) -> list[Path]:
        return [self.sealed[name].path for name in names]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder, owner = tmp_path_factory.mktemp("bundles"), OwnerKey.generate()
    chains: dict[str, dict[str, Any]] = {
        "mlp-1": {"chain": (BOUNDS, SCORE, misinform(0.6), RELEASE)},
        "mlp-2": {"chain": (BOUNDS, SCORE, misinform(0.6), RELEASE), "version": 2, "seed": 5},
        "plain": {"chain": (LABELS_ONLY,), "name": "plain"},
        "metered": {"chain": (BOUNDS, budget(100), RELEASE), "name": "metered"},
        "reserved": {
            "chain": (SCORE, DefenseSpec(name="reject-option", parameters={"tau": 0.6}), RELEASE),
            "name": "reserved",
        },
    }
    sealed = {name: seal_mlp(folder / name, owner=owner, **more) for name, more in chains.items()}
    (folder / "owner.pub").write_bytes(owner.public.pem)
    return Bundles(folder, owner, sealed)


@pytest.fixture
def one_day() -> None:
    """At midnight (UTC) what a caller has left of the day begins anew: not within the test."""
    left = DAY_SECONDS - time.time() % DAY_SECONDS
    if left < PATIENT_SECONDS:
        time.sleep(left)


@contextmanager
def serve(
    bundles: Bundles,
    *names: str,
    state: Path,
    limits: Limits | None = None,
    sections: dict[str, Any] | None = None,
    **server: Any,
) -> Iterator[Served]:
    """A server in this process; `sections` are further ones of its settings."""
    server = {"isolation": "none"} | server  # quicker to start; tests of the enclave ask for it
    config = Config(
        server=ServerConfig(port=0, state=str(state), **server), limits=limits or Limits(), **(sections or {})
    )
    assembly = assemble(config, bundles.paths(*names), [bundles.owner.public])
    with background(assembly) as url:
        yield Served(url, assembly)


@pytest.fixture(scope="session")
def served(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(bundles, "mlp-1", "mlp-2", "plain", state=tmp_path_factory.mktemp("state")) as running:
        yield running


@contextmanager
def command(
    bundles: Bundles, name: str, folder: Path, *more: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`garrison serve` in a process of its own, and what it says when it is ready. Its state lies in the folder.

    Without an enclave, which is quicker to start, unless `more` says otherwise.
    """
    words = [sys.executable, "-m", "garrison", "serve", str(bundles.sealed[name].path), "--port", "0", "--json", *more]
    words += [] if "--isolation" in more else ["--isolation", "none"]
    words += ["--trust", str(bundles.folder / "owner.pub"), "--state", str(folder / "state")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    server = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=folder)
    try:
        said = ""
        while not said.endswith("\n}\n"):
            line = server.stdout.readline() if server.stdout else ""
            if not line:
                pytest.fail(f"the server did not start: {server.stderr.read() if server.stderr else ''}")
            said += line
        yield server, json.loads(said)
    finally:
        server.kill()
        server.communicate()
