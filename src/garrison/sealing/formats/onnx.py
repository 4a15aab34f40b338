"""Reads .onnx files."""

from __future__ import annotations

from pathlib import Path

from garrison.hardening.artifact import sha256_of_file
from garrison.hardening.graphs import load_model
from garrison.sealing.formats.source import Source


def read(path: Path) -> Source:
    """An ONNX model, with its external data where it has some.

    Raises:
        ModelFileError: see `garrison.hardening.graphs.load_model`.
        UnsupportedModelError: operators of a custom domain.
    """
    return Source(model=load_model(path), format="onnx", sha256=sha256_of_file(path), packages=("onnx",))
