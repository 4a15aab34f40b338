"""KServe's unmodified gRPC client against a real server; in its own environment, as over HTTP."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tests.models import images
from tests.server.test_kserve import interpreter  # noqa: F401  a fixture
from tests.serving import Bundles, serve

from garrison.enclave.service import Service


@pytest.mark.slow
def test_the_kserve_client_works_unmodified(interpreter: Path, bundles: Bundles, tmp_path: Path) -> None:  # noqa: F811
    x = images(3)
    np.save(tmp_path / "x.npy", x)
    script = Path(__file__).with_name("kserve_asks.py")
    with serve(bundles, "mlp-1", "mlp-2", state=tmp_path, grpc_port=0) as served:
        assert served.assembly.grpc is not None
        words = [str(interpreter), str(script), served.assembly.grpc.address, str(tmp_path / "x.npy")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    sealed = bundles.sealed["mlp-2"]  # the newest version answers where none is named
    expected = Service(sealed.verified(), key=sealed.key).predict({"image": x}).outputs["probabilities"]
    assert found["live"] is found["ready"] is found["model_ready"] is True
    for form in ("typed", "raw"):
        assert (found[form]["id"], found[form]["name"]) == ("mine", "probabilities")
        assert np.allclose(np.reshape(found[form]["values"], expected.shape), expected, atol=1e-5)
    assert "outside the range" in found["refused"]
