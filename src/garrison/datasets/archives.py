"""Reads archives member by member into memory. Nothing is unpacked on disk, so no name or link inside one reaches out of it.

Every length is bounded; links are never followed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import tarfile
import zipfile
import zlib
from pathlib import Path

MEMBER_BYTES = 256 * 1024 * 1024
"""Longest file that is read out of an archive, in bytes."""


class RoadError(Exception):
    """The road did not lead to the files; the message says why. Never leaves the room."""


class WrongBytesError(RoadError):
    """The road led to something, and it is not what was pinned."""


def gunzip(data: bytes, limit: int) -> bytes:
    """Decompress at most `limit` bytes; one byte more than that, or a broken stream, is an error."""
    try:
        with gzip.open(io.BytesIO(data)) as stream:
            out = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise WrongBytesError(f"it does not decompress: {error}") from error
    if len(out) > limit:
        raise WrongBytesError(f"it decompresses to more than the {limit} bytes expected")
    return out


def read_tar(stream: io.BufferedIOBase | io.BytesIO, wanted: set[str], mode: str) -> dict[str, bytes]:
    """The wanted regular files of a tar stream, by name without a leading "./"; links are never followed."""
    found = {}
    try:
        with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
            for member in archive:
                name = member.name.removeprefix("./")
                if name not in wanted:
                    continue
                if not member.isreg() or member.size > MEMBER_BYTES:
                    raise WrongBytesError(f"{name} is no regular file of at most {MEMBER_BYTES} bytes")
                data = archive.extractfile(member)
                found[name] = data.read() if data else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise WrongBytesError(f"the archive cannot be read: {error}") from error
    return found


def read_zip(path: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted files of a zip archive (a wheel), by name."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in wanted & set(archive.namelist()):
                if archive.getinfo(name).file_size > MEMBER_BYTES:
                    raise WrongBytesError(f"{name} is longer than {MEMBER_BYTES} bytes")
                found[name] = archive.read(name)
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error, NotImplementedError) as error:
        raise WrongBytesError(f"the archive cannot be read: {error}") from error
    return found


def read_archive(path: Path, wanted: set[str]) -> dict[str, bytes]:
    if path.suffix in {".whl", ".zip"}:
        return read_zip(path, wanted)
    with path.open("rb") as stream:
        return read_tar(stream, wanted, "r|gz")


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
