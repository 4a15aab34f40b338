"""The cache of checked files, and the walk along a set's roads that fills it.

Invariants: a file is handed out only after its bytes were compared with the pinned SHA-256; it appears under its name by
one rename, whole or not at all; one process at a time fetches a set, the others wait for it and then read the cache.

    $GARRISON_CACHE, or $XDG_CACHE_HOME/garrison, or ~/.cache/garrison
      SET/FILE        a checked file; may be put there by hand
      packages/       archives as their clients brought them; may be put there by hand
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from garrison.datasets.archives import RoadError, WrongBytesError
from garrison.datasets.roads import Errand, Progress, Road, SourceFile
from garrison.errors import DatasetCorruptError, DatasetUnavailableError, MissingExtraError


def default_cache() -> Path:
    """The cache's folder, from the environment; it need not exist yet."""
    if chosen := os.environ.get("GARRISON_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rules: a relative path is invalid and is ignored.
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "garrison"


def silent(what: str, share: float) -> None:
    """The progress callback of a caller who wants none."""
    del what, share


@dataclass(frozen=True, slots=True)
class Store:
    """The cached files of one set.

    Attributes:
        name: the set's name, and its folder in the cache.
        files: its pinned files.
        roads: where they may be had, in the order in which they are tried.
        cache: the cache's folder.
        progress: called with what is being done and the share that is done, 0 to 1.
    """

    name: str
    files: tuple[SourceFile, ...]
    roads: tuple[Road, ...]
    cache: Path
    progress: Progress = silent

    @property
    def folder(self) -> Path:
        return self.cache / self.name

    @property
    def packages(self) -> Path:
        return self.cache / "packages"

    def read(self, name: str) -> bytes:
        """The checked bytes of one file, fetched first where the cache lacks it or holds other bytes.

        Raises:
            DatasetUnavailableError: no road led to it; says which were tried, and what to do by hand.
            DatasetCorruptError: what was found does not have the pinned SHA-256.
            MissingExtraError: a road needs an optional package.
        """
        file = next(file for file in self.files if file.name == name)
        data = self._cached(file)
        if data is None:
            self._fetch()
            data = self._cached(file)
        if data is None:
            raise DatasetCorruptError(f"{self.folder / name} was changed while it was being read; try again")
        return data

    def path(self, name: str) -> Path:
        """Where one file lies, just checked. Not checked: what becomes of it between this call and its use."""
        self.read(name)
        return self.folder / name

    def _cached(self, file: SourceFile) -> bytes | None:
        try:
            data = (self.folder / file.name).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == file.sha256 else None

    def _fetch(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._sweep()
                missing = tuple(file for file in self.files if self._cached(file) is None)
                if missing:
                    self._walk(missing)
        except OSError as error:
            raise DatasetUnavailableError(
                f"the cache {self.cache} cannot be used ({error}); set GARRISON_CACHE to a folder that can be written"
            ) from error

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _sweep(self) -> None:
        """Remove what a killed process left; only the holder of the lock may."""
        for left in self.folder.glob(".work-*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in self.folder.glob(".new-*"):
            left.unlink(missing_ok=True)

    def _walk(self, missing: tuple[SourceFile, ...]) -> None:
        failures: list[tuple[str, Exception]] = [
            ("the cache", WrongBytesError(f"{self.folder / file.name} has not the pinned SHA-256 {file.sha256}"))
            for file in missing
            if (self.folder / file.name).exists()
        ]
        for road in self.roads:
            try:
                missing = self._try(road, missing)
            except (RoadError, MissingExtraError) as error:
                failures.append((road.title, error))
            if not missing:
                return
        self._give_up(missing, failures)

    def _try(self, road: Road, missing: tuple[SourceFile, ...]) -> tuple[SourceFile, ...]:
        what = f"{self.name}: {road.title}"
        self.progress(what, 0.0)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".work-") as work:
            found = road.obtain(Errand(missing, self.packages, Path(work), self.progress))
        for file in missing:
            if file.name in found:
                self._write(file, found[file.name])
        self.progress(what, 1.0)
        return tuple(file for file in missing if file.name not in found)

    def _write(self, file: SourceFile, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        if digest != file.sha256:
            raise WrongBytesError(f"{file.name} has SHA-256 {digest}, expected {file.sha256}")
        fresh = self.folder / f".new-{file.name}"
        with fresh.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        fresh.replace(self.folder / file.name)

    def _give_up(self, missing: tuple[SourceFile, ...], failures: list[tuple[str, Exception]]) -> None:
        names = ", ".join(file.name for file in missing[:4]) + (" ..." if len(missing) > 4 else "")
        lines = [f"the data set {self.name!r} lacks {names}. Tried:"]
        lines += [f"  - {title}: {error}" for title, error in failures]
        by_hand = [text for road in self.roads if (text := road.by_hand(self.packages, self.folder))]
        lines += ["By hand, one of:", *(f"  - {text}" for text in by_hand)]
        lines.append(f"  - put {names} (SHA-256 {missing[0].sha256[:16]}... for the first) into {self.folder}")
        for _, error in failures:
            if isinstance(error, MissingExtraError):
                raise error from DatasetUnavailableError("\n".join(lines))
        corrupt = any(isinstance(error, WrongBytesError) for _, error in failures)
        raise (DatasetCorruptError if corrupt else DatasetUnavailableError)("\n".join(lines))
