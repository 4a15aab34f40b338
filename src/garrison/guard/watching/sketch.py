"""A projection that nobody outside knows: as the defense `projection` makes it, by a matrix that follows from the secret of `watch`.

The matrix of `projection` can be had by everybody, since the signed chain names its seed. Who knows it can step where it does not look, or make rows that
project far apart with next to no change. Detectors that compare a caller's rows with each other are shown this one instead.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np

from garrison.guard.defenses.projection import averaged, groups_of
from garrison.types import Array, FloatArray, ModelFacts


class Sketch:
    """Projects rows.

    Args:
        facts: of the model.
        secret: random bytes.
        width: numbers a row.
    """

    def __init__(self, facts: ModelFacts, secret: bytes, width: int) -> None:
        self._inputs = [(spec.name, math.prod(spec.shape)) for spec in facts.inputs]
        groups = groups_of(n for _, n in self._inputs)
        seed = int.from_bytes(hashlib.sha256(b"garrison-sketch" + secret).digest())
        drawn = np.random.Generator(np.random.PCG64(seed)).normal(size=(groups, width))
        self._matrix = (drawn / math.sqrt(width)).astype(np.float32)

    def __call__(self, inputs: Mapping[str, Array]) -> FloatArray:
        """Shape (rows, width), single precision. What is missing or infinite counts as 0."""
        parts = [inputs[name].reshape(-1, n).astype(np.float32, copy=False) for name, n in self._inputs]
        found = self._project(parts)
        if not np.isfinite(found).all():
            parts = [np.where(np.abs(x) < np.finfo(np.float32).max, x, np.float32(0)) for x in parts]
            found = np.nan_to_num(self._project(parts))
        return found

    def _project(self, parts: list[FloatArray]) -> FloatArray:
        with np.errstate(over="ignore", invalid="ignore"):
            parts = [averaged(x, n) for x, (_, n) in zip(parts, self._inputs, strict=True)]
            found: FloatArray = (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)) @ self._matrix
        return found
