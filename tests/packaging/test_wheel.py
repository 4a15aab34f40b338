"""The wheel alone, in a clean environment without torch or onnx: it verifies, serves and answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tests.models import images, seal_mlp
from tests.stalls import PATIENT_SECONDS

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a fresh environment that holds the wheel and what it requires."""
    base = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(base), str(ROOT)]
    subprocess.run(build, check=True)
    subprocess.run([sys.executable, "-m", "venv", str(base / "env")], check=True)
    wheel = next(base.glob("garrison-*.whl"))
    subprocess.run(
        [str(base / "env/bin/pip"), "install", "--quiet", "--disable-pip-version-check", str(wheel)], check=True
    )
    return base / "env" / "bin"


def test_it_is_small(clean: Path) -> None:
    listed = json.loads(
        subprocess.run(
            [str(clean / "pip"), "list", "--format", "json"], capture_output=True, text=True, check=True
        ).stdout
    )
    names = {p["name"].lower() for p in listed} - {"pip", "setuptools"}
    assert not names & {"torch", "onnx", "scikit-learn"}
    assert len(names) < 40, sorted(names)


def test_it_lists_every_command(clean: Path, tmp_path: Path) -> None:
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    told = subprocess.run(
        [str(clean / "garrison"), "--help"], cwd=tmp_path, env=outside, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert "it needs the extra 'seal'" in told.stdout


def test_it_serves_a_sealed_bundle(clean: Path, tmp_path: Path, port: int) -> None:
    sealed = seal_mlp(tmp_path / "bundle")
    trust = tmp_path / "owner.pub"
    trust.write_bytes(sealed.owner.public.pem)
    np.savez(tmp_path / "x.npz", x=images(3))
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(clean / "garrison"), "serve", str(sealed.path), "--trust", str(trust), "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=outside, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait(f"{url}/v2/health/ready")
        predict = [str(clean / "garrison"), "predict", url, "x.npz", "--json"]
        answer = subprocess.run(predict, cwd=tmp_path, env=outside, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout)
    finally:
        server.terminate()
        assert server.wait(PATIENT_SECONDS) == 0
    harden = subprocess.run(
        [str(clean / "garrison"), "harden", "m.onnx", "--data", "x.npz", "-o", "h"],
        cwd=tmp_path,
        env=outside,
        capture_output=True,
        text=True,
        check=False,
    )
    assert harden.returncode != 0
    assert "garrison[" in harden.stderr  # names the extra to install


def wait(url: str) -> None:
    for _ in range(150):
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not become ready")
