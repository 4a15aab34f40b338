"""Reads a user's .npz file without trusting it.

Invariants: nothing is ever unpickled; no member is unpacked before the sizes that the archive's directory and the array's own header
state were checked against each other and against a limit; never more bytes are unpacked than were stated.

Not checked: what the arrays mean.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from garrison.errors import GarrisonError, InputError
from garrison.types import Array

MOST_BYTES = 16 * 1024**3
"""Of all arrays together, unpacked; more than that is taken for a decompression bomb."""
MOST_ARRAYS = 1024
_SUFFIX = ".npy"


def read_arrays(
    path: Path,
    *,
    names: Collection[str] | None = None,
    most_bytes: int = MOST_BYTES,
    error: type[GarrisonError] = InputError,
) -> dict[str, Array]:
    """The arrays of an .npz file, by name.

    Args:
        names: read only these, where they are there; None for all.
        most_bytes: of all arrays that are read together, unpacked.
        error: what is raised; the kind that fits the caller's work.

    Raises:
        GarrisonError: of the kind `error`: it cannot be opened, is not an .npz file, holds Python objects, is too large, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive, names, most_bytes, error)
            return {name: _read(path, archive, member, name, error) for name, member in members.items()}
    except OSError as found:
        raise error(f"{path}: cannot be read: {found.strerror or found}") from found
    except zipfile.BadZipFile as found:
        raise error(f"{path} is not an .npz file of plain arrays: {_why_no_archive(path) or found}") from found
    except (EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error) as found:
        raise error(f"{path} is not an .npz file of plain arrays, or it is damaged: {found}") from found
    except MemoryError as found:
        raise error(f"{path}: there is not enough memory for its arrays") from found


def _why_no_archive(path: Path) -> str:
    """What a file that is no zip archive is instead, where that can be told."""
    with path.open("rb") as file:
        start = file.read(len(npy.MAGIC_PREFIX))
    if not start:
        return "it is empty"
    if start == npy.MAGIC_PREFIX:
        return "it is one .npy array; save it with numpy.savez(FILE, x=array)"
    return "it is no zip archive; save arrays with numpy.savez(FILE, x=array)"


def _members(
    path: Path, archive: zipfile.ZipFile, names: Collection[str] | None, most: int, error: type[GarrisonError]
) -> dict[str, zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > MOST_ARRAYS:
        raise error(f"{path}: expected at most {MOST_ARRAYS} arrays, found {len(entries)}")
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name = entry.filename.removesuffix(_SUFFIX)
        if name in members:
            raise error(f"{path}: the array {name!a} is there twice")
        if names is None or name in names:
            members[name] = entry
    total = sum(entry.file_size for entry in members.values())
    if total > most:
        raise error(f"{path}: its arrays unpack to {total:,} bytes; at most {most:,} are read")
    return members


def _read(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, error: type[GarrisonError]) -> Array:
    with archive.open(entry) as stream:
        shape, fortran, dtype = _header(stream)
        if dtype.hasobject:
            raise error(
                f"{path}: {name!a}: an array of Python objects is never read, only plain arrays; "
                "save it as numbers or fixed-length text"
            )
        size = math.prod(shape) * dtype.itemsize
        left = entry.file_size - stream.tell()
        if size != left:
            raise error(f"{path}: {name!a}: its header states {size:,} bytes, {max(0, left):,} are there")
        data = bytearray(size)
        if _fill(stream, data) != size or stream.read(1):
            raise error(f"{path}: {name!a}: the file ends early or is damaged")
    values: Array = np.frombuffer(data, dtype=dtype) if dtype.itemsize else np.zeros(math.prod(shape), dtype)
    return values.reshape(shape, order="F" if fortran else "C")


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(stream)
    else:
        raise ValueError(f"expected .npy version 1.0 or 2.0, found {version[0]}.{version[1]}")
    if any(n < 0 for n in shape):
        raise ValueError(f"an array of shape {shape}")
    return tuple(shape), bool(fortran), dtype


def _fill(stream: IO[bytes], data: bytearray) -> int:
    view, at = memoryview(data), 0
    while at < len(view):
        part = stream.read(min(1 << 20, len(view) - at))
        if not part:
            break
        view[at : at + len(part)] = part
        at += len(part)
    return at
