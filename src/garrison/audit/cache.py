"""Finished trials, kept so that an audit that was interrupted goes on where it stopped.

A trial's key is the digest of all that its result depends on: attack and parameters, what it may read, budget, seed, the target
(its digests and its answers to probes), the rows, the software and the number of threads. A changed guard is another target.

Not checked: who wrote the folder. Whoever can write there can write the report as well.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from garrison.attacks.base import Trial
from garrison.types import FloatArray

FORMAT = 1


class _Scores(msgspec.Struct, frozen=True):
    """One float64 a row, compressed."""

    rows: int
    data: bytes


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    trial: dict[str, Any]
    scores: dict[str, _Scores]


class TrialCache:
    """A folder of finished trials; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, key: str) -> Trial | None:
        """The trial of that key; a file that cannot be read is as good as none."""
        if self._folder is None:
            return None
        try:
            stored = msgspec.json.decode((self._folder / f"{key}.json").read_bytes(), type=_Stored)
            if stored.format != FORMAT:
                return None
            scores = {name: _unpacked(packed) for name, packed in stored.scores.items()}
            return Trial(**stored.trial, scores=scores)
        except (OSError, msgspec.DecodeError, zlib.error, ValueError, TypeError):
            return None

    def put(self, key: str, trial: Trial) -> None:
        """Keep a complete trial; it appears whole or not at all. An incomplete one is tried again next time."""
        if self._folder is None or not trial.complete:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        plain = {name: getattr(trial, name) for name in trial.__dataclass_fields__ if name != "scores"}
        scores = {name: _packed(values) for name, values in trial.scores.items()}
        new = self._folder / f".{key}.new"
        new.write_bytes(msgspec.json.encode(_Stored(FORMAT, plain, scores)))
        new.replace(self._folder / f"{key}.json")


def _packed(values: FloatArray) -> _Scores:
    return _Scores(len(values), zlib.compress(np.asarray(values, dtype="<f8").tobytes()))


def _unpacked(packed: _Scores) -> FloatArray:
    found: FloatArray = np.frombuffer(zlib.decompress(packed.data), dtype="<f8", count=packed.rows)
    return found
