"""Reads a folder that somebody else may be changing: every name is opened once, and no link is followed.

All paths are relative to one open descriptor of the folder, so that exchanging a parent folder in between changes nothing. The
folder itself may be reached through a link; nothing in it may be one.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from garrison.errors import BundleError, MissingFileError, UnexpectedFileError

_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: a pipe must not hang us
_FOLDER_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY


class Folder:
    """An open folder.

    Raises:
        MissingFileError: there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError as error:
            raise MissingFileError(f"expected a bundle's folder at {path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def check_exactly(self, names: Collection[str]) -> None:
        """Check that the folder holds regular files of these names and nothing else, not even an empty folder.

        Raises:
            UnexpectedFileError: something that is not named, a link, or a special file.
            MissingFileError: a name that is not there.
            BundleError: a folder that cannot be listed.
        """
        folders = {name.rsplit("/", i)[0] for name in names for i in range(1, name.count("/") + 1)}
        try:
            found = set(_walk(self._fd, "", frozenset(names), frozenset(folders)))
        except OSError as error:
            raise BundleError(f"the bundle's folder cannot be listed: {error.strerror}") from error
        for name in sorted(set(names) - found):
            raise MissingFileError("this file was signed and is not there", file=name)

    def read(self, name: str, most: int) -> bytes:
        """A private copy of a file: at most `most` + 1 bytes, so that a longer file can be told from one that fits.

        Raises:
            MissingFileError: not there.
            UnexpectedFileError: a link or a special file.
            BundleError: it cannot be read.
        """
        try:
            with _opened(self._fd, name) as fd, os.fdopen(fd, "rb", closefd=False) as file:
                return file.read(most + 1)
        except OSError as error:
            raise _explained(error, name) from error

    def size(self, name: str) -> int:
        """The size that the file system states, in bytes. Only to avoid needless work: what counts is what `read` returns."""
        try:
            with _opened(self._fd, name) as fd:
                return os.fstat(fd).st_size
        except OSError as error:
            raise _explained(error, name) from error


@contextmanager
def _opened(root: int, name: str) -> Iterator[int]:
    *parents, leaf = name.split("/")
    fds: list[int] = []
    try:
        for parent in parents:
            fds.append(os.open(parent, _FOLDER_FLAGS, dir_fd=fds[-1] if fds else root))
        fds.append(os.open(leaf, _FILE_FLAGS, dir_fd=fds[-1] if fds else root))
        if not stat.S_ISREG(os.fstat(fds[-1]).st_mode):
            raise UnexpectedFileError("expected a regular file, found a folder or a special file", file=name)
        yield fds[-1]
    finally:
        for fd in fds:
            os.close(fd)


def _explained(error: OSError, name: str) -> BundleError:
    match error.errno:
        case errno.ENOENT:
            return MissingFileError("this file is not there", file=name)
        case errno.ELOOP | errno.ENOTDIR:
            return UnexpectedFileError("a symbolic link; a bundle holds regular files only", file=name)
        case _:
            return BundleError(f"cannot be read: {error.strerror}", file=name)


def _walk(fd: int, prefix: str, names: frozenset[str], folders: frozenset[str]) -> Iterator[str]:
    """Names of the regular files. Raises at the first entry that is not expected, so its work is bounded by `names`:

    no more entries of a folder are looked at than there are names, and it goes no deeper than a name does.
    """
    most = len(names) + len(folders)
    with os.scandir(fd) as entries:
        found = list(itertools.islice(entries, most + 1))
        for entry in sorted(found, key=lambda e: e.name):
            name = prefix + entry.name
            if entry.is_symlink():
                raise UnexpectedFileError("a symbolic link; a bundle holds regular files only", file=_shown(name))
            if entry.is_dir(follow_symlinks=False) and name in folders:
                inner = os.open(entry.name, _FOLDER_FLAGS, dir_fd=fd)
                try:
                    yield from _walk(inner, f"{name}/", names, folders)
                finally:
                    os.close(inner)
            elif entry.is_file(follow_symlinks=False) and name in names:
                yield name
            else:
                raise UnexpectedFileError(
                    "this was not signed; a bundle holds the signed files only", file=_shown(name)
                )


def _shown(name: str) -> str:
    """File names may hold any bytes; what is shown must be printable."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return text if text.isprintable() else ascii(text)
