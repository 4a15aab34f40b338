"""A sealed model that looks for drift, for tests of the service and the command line."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import msgspec
import numpy as np

from garrison.bundle.manifest import InputSpec, input_facts
from garrison.crypto.owner import OwnerKey
from garrison.hardening.drift import fit_drift
from garrison.hardening.scoring import open_session, score
from garrison.types import Array, DefenseSpec, ModelFacts, Task
from tests.models import BOUNDS, CLASSES, LABELS, PIXELS, RELEASE, SCORE, Sealed, images, mlp, seal_mlp


def facts() -> ModelFacts:
    spec = input_facts(InputSpec(name="image", datatype="FP32", shape=PIXELS, minimum=0.0, maximum=1.0))
    return ModelFacts(Task.CLASSIFICATION, (spec,), LABELS, CLASSES, np.dtype(np.float32), True, True)


@lru_cache(maxsize=1)
def reference() -> DefenseSpec:
    """A reference of uniform images."""
    x = images(2_500, seed=3)
    answers = score(open_session(mlp().SerializeToString()), {"image": x}, ["probabilities"])["probabilities"]
    found = fit_drift(facts(), {"image": x}, answers)
    return DefenseSpec(name="drift", parameters=msgspec.to_builtins(found.drift))


def seal_drifting(out: Path, owner: OwnerKey | None = None, **more: bool) -> Sealed:
    return seal_mlp(out, (BOUNDS, SCORE, RELEASE, reference()), name="drifting", owner=owner, **more)


def dark(rows: int, seed: int = 5) -> Array:
    """Images that are half as bright as those of the reference."""
    return images(rows, seed) / 2
