"""A real MLServer, in an environment of its own, guarded without a change: hardened, sealed and asked through the gateway."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.models import LABELS, PIXELS, Sealed, images, mlp
from tests.ports import held_port
from tests.upstream.guards import gateway
from tests.upstream.triton import onnx_triton

from garrison.client import Client
from garrison.crypto.owner import OwnerKey
from garrison.hardening.artifact import write_hardened
from garrison.hardening.data import Rows
from garrison.hardening.harden import Options
from garrison.hardening.upstream import Wish, harden_upstream
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_hardened
from garrison.upstream.target import Target

pytestmark = pytest.mark.slow

KEPT = "GARRISON_TEST_MLSERVER"
"""Folder of an environment with mlserver and onnxruntime, to be used in place of a fresh one."""
INSTALL_SECONDS, START_SECONDS = 900, 60
MODEL = """
import pathlib
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Digits(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(pathlib.Path(__file__).parent / "model.onnx"), options)
        return True

    async def predict(self, payload):
        (found,) = self.session.run(["probabilities"], {"image": NumpyCodec.decode_input(payload.inputs[0])})
        answer = NumpyCodec.encode_output("probabilities", found)
        return InferenceResponse(id=payload.id, model_name=self.name, model_version=self.version, outputs=[answer])
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if KEPT in os.environ:
        return Path(os.environ[KEPT])
    folder = tmp_path_factory.mktemp("mlserver") / "venv"
    install = [str(folder / "bin" / "pip"), "install", "-q", "mlserver>=1.7,<2", "onnxruntime"]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, timeout=120)
        subprocess.run(install, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines() or [""]
        pytest.skip(f"MLServer cannot be installed on this machine: {said[-1][:200]}")
    return folder


@pytest.fixture(scope="module")
def url(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with held_port() as http, held_port() as grpc, held_port() as metrics:
        yield from _running(environment, tmp_path_factory.mktemp("model"), http, grpc, metrics)


def _running(environment: Path, folder: Path, http: int, grpc: int, metrics: int) -> Iterator[str]:
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    tensors = {
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, *PIXELS]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, len(LABELS)]}],
    }
    (folder / "model.onnx").write_bytes(mlp(head=False).SerializeToString())
    (folder / "digits_model.py").write_text(MODEL)
    (folder / "settings.json").write_text(json.dumps(settings | {"parallel_workers": 0}))
    (folder / "model-settings.json").write_text(
        json.dumps({"name": "digits", "implementation": "digits_model.Digits", **tensors})
    )
    log = (folder / "log").open("w")
    words = [str(environment / "bin" / "mlserver"), "start", str(folder)]
    process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        found = f"http://127.0.0.1:{http}"
        _wait(found, folder / "log")
        yield found
    finally:
        process.terminate()
        process.wait(30)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/v2/models/digits/ready").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    pytest.fail(f"MLServer did not start: {log.read_text()[-2000:]}")


def test_mlserver_is_guarded_as_it_is(url: str, tmp_path: Path) -> None:
    data = Rows({"x": images(1200)}, None, None, "0" * 64)
    hardened = harden_upstream(Target(url), Wish(model="digits"), data, options=Options(benign_loss=0.05))
    entry = hardened.description.upstream
    assert entry is not None
    assert entry.most_rows == 64
    write_hardened(tmp_path / "HARDENED", hardened.description, hardened.model, hardened.misinformation)
    owner = OwnerKey.generate()
    seal(draft_from_hardened(tmp_path / "HARDENED", SealOptions(name="guarded")), owner, tmp_path / "BUNDLE")
    sealed = Sealed(tmp_path / "BUNDLE", owner, mlp(head=False), owner.misinformation_key("guarded"))
    model = onnx_triton(mlp(head=False).SerializeToString(), PIXELS, len(LABELS)).run
    x = images(300, seed=9)
    own = model(x)
    with gateway(sealed, url, tmp_path / "state") as served, Client(served.url) as client:
        found = client.predict(x).outputs["probabilities"]
        bad = httpx.post(f"{served.url}/v2/models/guarded/infer", json={"inputs": []})
        assert bad.status_code == 400
    changed = np.abs(found - own).max(axis=1) > 1e-3
    tau = hardened.calibration.tau
    unsure = own.max(axis=1) < tau - 0.05
    assert unsure.any()
    assert changed[unsure].all(), "what looks out of distribution is answered with something else"
    assert not changed[own.max(axis=1) > tau + 0.05].any(), "control: anything else as MLServer does"
