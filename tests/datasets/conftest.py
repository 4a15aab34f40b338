"""Made sets: small IDX files in a made npm package, found by the real roads without a network."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from garrison.datasets.roads import NpmPackage, SourceFile, under
from garrison.datasets.store import Store


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def tgz(members: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    """A tar.gz of regular files (bytes) and of whatever else (a TarInfo)."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), mtime=0)


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
FILES = {"images": idx(PIXELS), "labels": idx(np.array([1, 0], dtype=np.uint8))}
PINS = tuple(SourceFile(name, sha256(data), len(data)) for name, data in FILES.items())
ARCHIVE = tgz({f"package/data/{name}": data for name, data in FILES.items()})


def npm_road(archive: bytes = ARCHIVE) -> NpmPackage:
    return NpmPackage("made@1.0.0", "made-1.0.0.tgz", sha256(archive), under("package/data", *FILES))


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which no package client is installed."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


@pytest.fixture
def store(tmp_path: Path, no_programs: None) -> Store:
    """A store whose package somebody has put into the cache by hand."""
    cache = tmp_path / "cache"
    (cache / "packages").mkdir(parents=True)
    (cache / "packages" / "made-1.0.0.tgz").write_bytes(ARCHIVE)
    return Store("made", PINS, (npm_road(),), cache)
