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

from garrison.attacks.base import Finding, Trial
from garrison.attacks.exam import Picture
from garrison.audit.report.content import EvasionCard
from garrison.types import FloatArray

FORMAT = 3
_PACKED = ("scores", "pictures")
_UNREADABLE = (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Scores(msgspec.Struct, frozen=True):
    """One float64 a row, compressed."""

    rows: int
    data: bytes


class _Image(msgspec.Struct, frozen=True):
    """One float32 a pixel, compressed."""

    shape: tuple[int, int, int]
    data: bytes


class _Picture(msgspec.Struct, frozen=True):
    caption: str
    names: tuple[str, ...]
    images: tuple[_Image, ...]


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    trial: dict[str, Any]
    scores: dict[str, _Scores]
    pictures: tuple[_Picture, ...]


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
            told = {
                what: value for what, value in stored.trial["told"].items() if value is not None
            }  # NaN, as JSON has it
            scores = {name: _unpacked(packed) for name, packed in stored.scores.items()}
            return Trial(
                **{**stored.trial, "told": told}, scores=scores, pictures=tuple(_shown(p) for p in stored.pictures)
            )
        except (*_UNREADABLE, zlib.error, ValueError, TypeError, KeyError, AttributeError):
            return None

    def honest(self, key: str) -> tuple[Finding, ...] | None:
        """What was measured on honest users under that key; a file that cannot be read is as good as none."""
        if self._folder is None:
            return None
        try:
            return msgspec.json.decode((self._folder / f"{key}.honest").read_bytes(), type=tuple[Finding, ...])
        except _UNREADABLE:
            return None

    def put_honest(self, key: str, findings: tuple[Finding, ...]) -> None:
        """Keep what was measured on honest users; it appears whole or not at all."""
        self._write(f"{key}.honest", msgspec.json.encode(findings))

    def evasion(self, key: str) -> EvasionCard | None:
        """What an evasion attack did under that key; a file that cannot be read is as good as none."""
        if self._folder is None:
            return None
        try:
            return msgspec.json.decode((self._folder / f"{key}.evasion").read_bytes(), type=EvasionCard)
        except _UNREADABLE:
            return None

    def put_evasion(self, key: str, card: EvasionCard) -> None:
        """Keep what an evasion attack did; it appears whole or not at all."""
        self._write(f"{key}.evasion", msgspec.json.encode(card))

    def answers(self, target: str, seed: int) -> Path | None:
        """The file that keeps what a target answered to the trials of one seed; None where nothing is kept."""
        return None if self._folder is None else self._folder / f"{target}-{seed}.answers"

    def put(self, key: str, trial: Trial) -> None:
        """Keep a complete trial; it appears whole or not at all. An incomplete one is tried again next time."""
        if not trial.complete:
            return
        plain = {name: getattr(trial, name) for name in trial.__dataclass_fields__ if name not in _PACKED}
        scores = {name: _packed(values) for name, values in trial.scores.items()}
        pictures = tuple(_kept(picture) for picture in trial.pictures)
        self._write(f"{key}.json", msgspec.json.encode(_Stored(FORMAT, plain, scores, pictures)))

    def _write(self, name: str, data: bytes) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        new = self._folder / f".{name}.new"
        new.write_bytes(data)
        new.replace(self._folder / name)


def _packed(values: FloatArray) -> _Scores:
    return _Scores(len(values), zlib.compress(np.asarray(values, dtype="<f8").tobytes()))


def _unpacked(packed: _Scores) -> FloatArray:
    found: FloatArray = np.frombuffer(zlib.decompress(packed.data), dtype="<f8", count=packed.rows)
    return found


def _kept(picture: Picture) -> _Picture:
    images = tuple(_Image(_shape(i), zlib.compress(np.asarray(i, dtype="<f4").tobytes())) for i in picture.images)
    return _Picture(picture.caption, picture.names, images)


def _shape(image: FloatArray) -> tuple[int, int, int]:
    channels, height, width = image.shape
    return channels, height, width


def _shown(kept: _Picture) -> Picture:
    images = tuple(np.frombuffer(zlib.decompress(i.data), dtype="<f4").reshape(i.shape) for i in kept.images)
    return Picture(kept.caption, kept.names, images)
