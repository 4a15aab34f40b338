"""The formats that a model can be sealed from. A new format is one file here and one line in `READERS`.

No reader runs code that a model file brings along: formats that are pickles are refused, whatever their name.
"""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

from garrison.errors import ModelFileError, UnsupportedModelError
from garrison.sealing.formats.source import Source

READERS: dict[str, str] = {
    ".onnx": "garrison.sealing.formats.onnx:read",
    ".skops": "garrison.sealing.formats.sklearn:read",
    ".pt2": "garrison.sealing.formats.torch:read",
    ".json": "garrison.sealing.formats.xgboost:read",
    ".ubj": "garrison.sealing.formats.xgboost:read",
    ".txt": "garrison.sealing.formats.lightgbm:read",
}
DOUBLE = frozenset({".skops", ".txt"})
"""What can be converted in double precision too."""

PICKLES = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt", ".dill", ".cloudpickle"})
_INSTEAD = (
    "such a file is a program that runs when it is read, so it is not read here. Where you trust it, load it yourself and "
    "save it as ONNX (torch.onnx.export), as .skops (skops.io.dump, scikit-learn), as .pt2 (torch.export.save), as .json or .ubj "
    "(XGBoost's save_model) or as .txt (LightGBM's save_model)"
)
_LONGEST_START = 4096


def read_source(path: Path, *, double: bool = False) -> Source:
    """Read a model file by what it holds; its name must agree.

    Args:
        path: the file.
        double: convert in double precision; only the models of scikit-learn and LightGBM leave the choice.

    Raises:
        ModelFileError: it cannot be read, or its content is not what its name says.
        UnsupportedModelError: a pickle, or a format that nobody here reads.
    """
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise UnsupportedModelError(f"{path}: {_INSTEAD}")
    content = _content(path)
    if content == "pickle":
        raise UnsupportedModelError(f"{path}: holds a pickle; {_INSTEAD}")
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise UnsupportedModelError(f"{path}: expected a model file ({known}) or a HARDENED folder, found {suffix!r}")
    if content is not None and content != suffix:
        raise ModelFileError(f"{path}: its name says {suffix}, its content {content}")
    module, _, attribute = READERS[suffix].partition(":")
    reader: Callable[..., Source] = getattr(importlib.import_module(module), attribute)
    if not double:
        return reader(path)
    if suffix not in DOUBLE:
        known = " and ".join(sorted(DOUBLE))
        raise UnsupportedModelError(f"{path}: double precision can be chosen for {known} files; {suffix} keeps its own")
    return reader(path, double=True)


def _content(path: Path) -> str | None:
    """What the first bytes say: "pickle", a suffix, or None where they say nothing."""
    try:
        with path.open("rb") as file:
            start = file.read(_LONGEST_START)
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error
    if start[:1] == b"\x80" and start[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        return "pickle"
    if start[:2] != b"PK":
        return None
    return _zip_content(path)


def _zip_content(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ModelFileError(f"{path}: a damaged zip archive") from error
    if "schema.json" in names:
        return ".skops"
    tails = {name.split("/", 1)[-1] for name in names}
    if "archive_format" in tails and "models/model.json" in tails:
        return ".pt2"
    if any(name.endswith(".pkl") for name in names):
        return "pickle"
    return None
