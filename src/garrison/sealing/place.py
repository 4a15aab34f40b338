"""Puts a finished folder in its place: it appears whole or not at all, and an older bundle goes only when the new one is whole.

Between taking the old folder away and putting the new one there lies one moment without either; if the machine stops just then,
the old bundle lies beside the target under a hidden name.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from garrison.bundle.manifest import FORMAT, MANIFEST_FILE, PARAMETER_FOLDER, SIGNATURE_FILE
from garrison.errors import SealingError, TargetExistsError

GRAPH_FILE = "graph.onnx"
MISINFORMATION_FILE = "misinformation.onnx"
GUARDED_FILE = "guarded.onnx"
_EARLIER_FILE = "late.onnx"
"""Sealed until 2026-11; such a bundle may be replaced."""
_OWN_FILES = frozenset({MANIFEST_FILE, SIGNATURE_FILE, GRAPH_FILE, MISINFORMATION_FILE, GUARDED_FILE, _EARLIER_FILE})


def check_target(path: Path, *, force: bool) -> None:
    """Raise `TargetExistsError` where a bundle may not be put; to be called before long work is begun.

    Raises:
        SealingError: also where it cannot be looked at, or nothing can be written there (no permission, a read-only disk).
    """
    try:
        _check_target(path, force=force)
        _check_parent(path)
    except OSError as error:
        raise SealingError(f"{path}: cannot be written: {error.strerror}") from error


def _check_target(path: Path, *, force: bool) -> None:
    if not _there(path):
        return
    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
        return
    if not force:
        raise TargetExistsError(f"{path} exists already; give another name, or --force to replace it")
    foreign = _why_no_bundle(path)
    if foreign is not None:
        raise TargetExistsError(f"{path} is not replaced: {foreign}. Only a sealed bundle may be replaced")


def _check_parent(path: Path) -> None:
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise SealingError(f"{path}: cannot be written: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SealingError(f"{path}: cannot be written: nothing may be written to {folder}")


def _there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _why_no_bundle(path: Path) -> str | None:
    """Why this is no bundle, or holds something that is not a bundle's; None where it is one."""
    if path.is_symlink() or not path.is_dir():
        return "it is no folder"
    for file in path.rglob("*"):  # ends at the first strange file: this may be anybody's folder, and large
        name = file.relative_to(path).as_posix()
        chunk = file.parent == path / PARAMETER_FOLDER and file.suffix == ".bin"
        own = name in _OWN_FILES or name == PARAMETER_FOLDER or chunk
        if not own or file.is_symlink():
            return f"it holds {name!r}, which is no part of a bundle"
    try:
        found = msgspec.json.decode((path / MANIFEST_FILE).read_bytes(), type=dict[str, msgspec.Raw])
        known = msgspec.json.decode(found["format"], type=str).startswith(FORMAT.split("/")[0])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, KeyError):
        known = False
    return None if known else f"it holds no {MANIFEST_FILE} of a bundle"


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A new hidden folder beside the target, removed at the end unless it was put in place.

    Raises:
        SealingError: the parent folder cannot be written to.
    """
    new = target.parent / f".{target.name}.sealing-{secrets.token_hex(4)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
    except OSError as error:
        raise SealingError(f"{target}: cannot be written: {error.strerror}") from error
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by path relative to the folder.

    Raises:
        SealingError: one of them cannot be written (no space, no permission).
    """
    for name, data in files.items():
        file = folder / name
        try:
            file.parent.mkdir(exist_ok=True)
            with file.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())  # whole on the disk before an older bundle may go
        except OSError as error:
            raise SealingError(f"{name}: cannot be written: {error.strerror}") from error


def put_in_place(new: Path, target: Path, *, force: bool) -> None:
    """Move a finished folder to its place.

    Raises:
        TargetExistsError: see `check_target`.
        SealingError: it cannot be moved; the old folder is where it was.
    """
    check_target(target, force=force)
    old = target.parent / f".{target.name}.old-{secrets.token_hex(4)}"
    try:
        replaced = _there(target)
        if replaced:
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if replaced:
                old.rename(target)
            raise
    except OSError as error:
        raise SealingError(f"{target}: cannot be put in place: {error.strerror}") from error
    shutil.rmtree(old, ignore_errors=True)
