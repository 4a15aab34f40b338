"""KServe's unmodified client against a real server.

Its pins cannot live with ours, so it gets an environment of its own, which the test makes (some minutes, once a run);
`GARRISON_KSERVE_PYTHON` names the interpreter of one that is there already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.models import images
from tests.serving import Bundles, Served

from garrison.enclave.service import Service

KSERVE = "kserve==0.21.0"
MOST_SECONDS = 600


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("GARRISON_KSERVE_PYTHON")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("kserve")
    python = folder / "bin" / "python"
    for words in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", KSERVE],
    ):
        done = subprocess.run(words, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
        if done.returncode:
            pytest.skip(f"{KSERVE} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    return python


@pytest.mark.slow
def test_the_kserve_client_works_unmodified(
    interpreter: Path, served: Served, bundles: Bundles, tmp_path: Path
) -> None:
    x = images(3)
    np.save(tmp_path / "x.npy", x)
    script = Path(__file__).with_name("kserve_asks.py")
    words = [str(interpreter), str(script), served.url, "", str(tmp_path / "x.npy")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    sealed = bundles.sealed["mlp-2"]  # the newest version answers where none is named
    expected = Service(sealed.verified(), key=sealed.key).predict({"image": x}).outputs["probabilities"]
    assert found["live"] is found["ready"] is found["model_ready"] is True
    for form in ("json", "binary"):
        assert (found[form]["id"], found[form]["name"]) == ("mine", "probabilities")
        assert np.allclose(np.reshape(found[form]["values"], expected.shape), expected, atol=1e-5)
    assert "outside the range" in found["refused"]
