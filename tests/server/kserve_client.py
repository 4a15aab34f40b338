"""KServe's unmodified clients, each run in an environment of its own, whose pins cannot live with ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.models import images
from tests.serving import Bundles

from garrison.enclave.service import Service

KSERVE = "kserve==0.21.0"
MOST_SECONDS = 600


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with KServe, made here (some minutes); `GARRISON_KSERVE_PYTHON` names one that is there already."""
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


def check_answers(
    interpreter: Path, script: Path, address: str, bundles: Bundles, folder: Path, forms: tuple[str, str]
) -> None:
    """Have KServe's client ask as `script` does, and compare what it got, in both forms of tensors, with the model's own answers."""
    x = images(3)
    np.save(folder / "x.npy", x)
    words = [str(interpreter), str(script), address, str(folder / "x.npy")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    sealed = bundles.sealed["mlp-2"]  # the newest version answers where none is named
    expected = Service(sealed.verified(), key=sealed.key).predict({"image": x}).outputs["probabilities"]
    assert found["live"] is found["ready"] is found["model_ready"] is True
    for form in forms:
        assert (found[form]["id"], found[form]["name"]) == ("mine", "probabilities")
        assert np.allclose(np.reshape(found[form]["values"], expected.shape), expected, atol=1e-5)
    assert "outside the range" in found["refused"]
