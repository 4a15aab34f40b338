"""The HARDENED folder: what `garrison harden` writes and `garrison seal` reads.

    model.onnx             the victim, outputs named `probabilities` (+ `logits`, `misinformation`)
    misinformation.onnx    f', where it is a network of its own, output `misinformation` (= log f')
    hardened.json          everything else: task, labels, inputs, the calibrated chain of defenses, figures

Invariant: a folder that `read_hardened` accepts holds exactly the graphs that the chain was calibrated on. The folder is
not signed: sealing signs what it is given, and whoever can write to this folder decides what that is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from garrison.bundle.manifest import InputSpec, UpstreamEntry
from garrison.errors import ModelFileError, TargetExistsError
from garrison.types import DefenseSpec, Task

FORMAT = "garrison-hardened/1"
DESCRIPTION_FILE = "hardened.json"
MODEL_FILE = "model.onnx"
MISINFORMATION_FILE = "misinformation.onnx"
MOST_DESCRIPTION_BYTES = 4 * 1024 * 1024


class Hardened(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """See the module's docstring.

    Attributes:
        model: the victim's file, relative to the folder; None where another server runs the model.
        upstream: which model there, then.
        misinformation: the file of f', or None where the victim has a head `misinformation` or the chain needs none.
        sha256: digest of each of those files, in hex.
        task: what the answer means.
        labels: class labels, empty for regression.
        inputs: with the value ranges seen in the data.
        guard: the chain of defenses, calibrated.
        metrics: as fractions unless the name says otherwise; `accuracy` and `served_accuracy` are those of the
            calibration rows.
        data_sha256: digest of the data as given, by role ("training", "calibration").
        outlier_exposure: whether the victim was trained with outlier exposure, as far as its owner said.
        versions: of the software that hardened.
    """

    format: str = FORMAT
    model: str | None = MODEL_FILE
    upstream: UpstreamEntry | None = None
    misinformation: str | None = None
    sha256: dict[str, str] = msgspec.field(default_factory=dict)
    task: Task
    labels: tuple[str, ...]
    inputs: tuple[InputSpec, ...]
    guard: tuple[DefenseSpec, ...]
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    data_sha256: dict[str, str] = msgspec.field(default_factory=dict)
    outlier_exposure: bool = False
    versions: dict[str, str] = msgspec.field(default_factory=dict)


def write_hardened(
    path: Path, description: Hardened, model: bytes | None, misinformation: bytes | None = None, *, force: bool = False
) -> Hardened:
    """Write the folder as a whole: it appears complete or not at all.

    Args:
        path: the folder to make.
        description: file names and digests in it are set here.
        model: the victim's graph; None where another server runs the model.
        misinformation: the graph of f', where it is a network of its own.
        force: replace an earlier HARDENED folder; nothing else is ever replaced.

    Returns:
        The description as written.

    Raises:
        TargetExistsError: `path` exists, and `force` is not given or it is no HARDENED folder.
        ModelFileError: the folder cannot be written.
    """
    check_target(path, force=force)
    given = {MODEL_FILE: model, MISINFORMATION_FILE: misinformation}
    files = {name: data for name, data in given.items() if data is not None}
    written = msgspec.structs.replace(
        description,
        model=None if model is None else MODEL_FILE,
        misinformation=None if misinformation is None else MISINFORMATION_FILE,
        sha256={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )
    text = msgspec.json.format(msgspec.json.encode(written, order="deterministic"), indent=1)
    try:
        _write_folder(path, files | {DESCRIPTION_FILE: text + b"\n"})
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be written: {error.strerror or error}") from error
    return written


def check_target(path: Path, *, force: bool) -> None:
    """Raise `TargetExistsError` where `write_hardened` would; to be called before long work is begun."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not force:
        raise TargetExistsError(f"{path} exists already; give another folder, or --force to replace it")
    if not (path / DESCRIPTION_FILE).is_file():
        raise TargetExistsError(f"{path} holds no {DESCRIPTION_FILE}, so it is no HARDENED folder and is not replaced")


def _write_folder(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, data in files.items():
            (new / name).write_bytes(data)
        umask = os.umask(0)
        os.umask(umask)
        new.chmod(0o777 & ~umask)
        old = None
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent)) / "old"
            path.rename(old)
        new.rename(path)
        if old is not None:
            shutil.rmtree(old.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def read_hardened(path: Path) -> Hardened:
    """Read and check a HARDENED folder.

    Does not check: whether the graphs can be run, and who wrote them.

    Raises:
        ModelFileError: no such folder, a missing or changed file, a description of another format or with unknown fields.
    """
    found = _read_description(path)
    named = [name for name in (found.model, found.misinformation) if name is not None]
    if (found.model is None) == (found.upstream is None):
        raise ModelFileError(f"{path / DESCRIPTION_FILE}: expected either a model or an upstream")
    if sorted(named) != sorted(found.sha256):
        raise ModelFileError(f"{path / DESCRIPTION_FILE}: expected digests of {named}, found {sorted(found.sha256)}")
    for name in named:
        _check_file(path, name, found.sha256[name])
    return found


def _read_description(path: Path) -> Hardened:
    file = path / DESCRIPTION_FILE
    try:
        if file.stat().st_size > MOST_DESCRIPTION_BYTES:
            raise ModelFileError(f"{file}: longer than {MOST_DESCRIPTION_BYTES} bytes")
        data = file.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: no HARDENED folder: {DESCRIPTION_FILE}: {error.strerror}") from error
    try:
        form = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("format")
        if form is None or bytes(form) != msgspec.json.encode(FORMAT):
            raise ModelFileError(f"{file}: expected format {FORMAT!r}; harden the model again with this version")
        return msgspec.json.decode(data, type=Hardened)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError(f"{file}: not a valid description: {error}") from error


def _check_file(path: Path, name: str, digest: str) -> None:
    if Path(name).name != name or name in {"", ".", ".."}:
        raise ModelFileError(f"{path / DESCRIPTION_FILE}: {name!r} is not a plain file name")
    try:
        data = (path / name).read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path / name}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ModelFileError(
            f"{path / name}: changed since it was hardened, so its calibration no longer holds; harden it again"
        )


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        ModelFileError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error


def software_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those of the given packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
