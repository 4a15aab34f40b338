"""Where a ledger lies on the disk, and who may have touched it.

    LEDGER/                                 0700, of the user that the server runs as
    LEDGER/chain-000/                       one chain a process that writes; whoever comes takes the first that nobody holds
    LEDGER/chain-000/lock                   held by who writes
    LEDGER/chain-000/000000000000.jsonl     a segment, by the number of its first entry
    LEDGER/chain-000/000000000000.pruned    what is left of a segment that was pruned
    LEDGER/chain-000/latest.json            the latest checkpoint, so that an end that was cut off is missed

Invariants: no symbolic link is followed, nor a file of another user opened; what others may write to is refused; a new file is on the disk, with its name, before anything
is in it.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from garrison.errors import ConfigError, LedgerError

LOCK, LATEST = "lock", "latest.json"
SEGMENT, PRUNED = ".jsonl", ".pruned"
_CHAINS = 1000
_CHAIN = re.compile(r"chain-\d{3}")
_NAMED = re.compile(r"(\d{12,})\.(jsonl|pruned)")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


def chain_name(number: int) -> str:
    return f"chain-{number:03d}"


def segment_name(first: int) -> str:
    return f"{first:012d}{SEGMENT}"


def pruned_name(first: int) -> str:
    return f"{first:012d}{PRUNED}"


def make_folder(path: Path) -> None:
    """Make a folder of one's own, or check that it is one.

    Raises:
        ConfigError: it cannot be made, is a link or somebody else's, or others may write to it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the ledger's folder {path} cannot be made: {error.strerror}") from error
    check_folder(path)


def check_folder(path: Path) -> None:
    """Raise `ConfigError` for a folder that is a link or somebody else's, or that others may write to."""
    try:
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"expected a ledger's folder at {path}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigError(f"expected a folder at {path}, found a link or a file")
    if found.st_uid not in {os.geteuid(), 0} or found.st_mode & _OTHERS_WRITE:
        raise ConfigError(
            f"the ledger's folder {path} must belong to who writes the ledger, and nobody else may write to it (chmod 700)"
        )


def chains_of(path: Path) -> list[Path]:
    """The chains in a ledger's folder, or the folder itself where it is one.

    Raises:
        ConfigError: there is none.
    """
    found = sorted(child for child in _children(path) if _CHAIN.fullmatch(child.name) and not child.is_symlink())
    if not found and any(_NAMED.fullmatch(child.name) for child in _children(path)):
        return [path]
    if not found:
        raise ConfigError(f"{path} holds no ledger")
    return found


def segments_of(chain: Path) -> list[tuple[int, Path]]:
    """Number of the first entry, and path, of each segment and of what is left of pruned ones; oldest first."""
    found = []
    for child in _children(chain):
        named = _NAMED.fullmatch(child.name)
        if named is not None:
            found.append((int(named[1]), child))
    return sorted(found)


def claim_chain(ledger: Path) -> tuple[Path, int]:
    """The first chain that nobody holds, made where there is none; its lock's descriptor, which holds it until it is closed.

    Raises:
        ConfigError: none is free, or the folder is not safe.
    """
    make_folder(ledger)
    for number in range(_CHAINS):
        chain = ledger / chain_name(number)
        make_folder(chain)
        lock = hold(chain)
        if lock is not None:
            return chain, lock
    raise ConfigError(f"{_CHAINS} others write to chains in {ledger}")


def hold(chain: Path) -> int | None:
    """The descriptor of a chain's lock; None where another program holds it.

    Raises:
        ConfigError: the lock cannot be made.
    """
    try:
        lock = os.open(chain / LOCK, _WRITE | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"{chain / LOCK} cannot be held: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def create(path: Path) -> int:
    """A new, empty file of one's own, which is on the disk with its name.

    Raises:
        OSError: there is one, or the disk fails.
    """
    descriptor = os.open(path, _WRITE | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.fsync(descriptor)
        sync_folder(path.parent)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def open_own(path: Path) -> int:
    """A file of one's own, to be written to.

    Raises:
        LedgerError: it is somebody else's, or others may write to it.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, _WRITE)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid not in {os.geteuid(), 0} or found.st_mode & _OTHERS_WRITE:
        os.close(descriptor)
        raise LedgerError(f"{path} is not a file that only its writer may write to (chmod 600)")
    return descriptor


@contextmanager
def reading(path: Path) -> Iterator[int]:
    """A regular file, opened to be read; no link is followed, and nothing is waited for.

    Raises:
        LedgerError: it cannot be read, or is no regular file.
    """
    try:
        descriptor = os.open(path, _READ)
    except OSError as error:
        raise LedgerError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LedgerError(f"{path} is no regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Put a whole file in the place of another.

    Raises:
        OSError: the disk fails; the old one is as it was.
    """
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, _WRITE | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _children(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError as error:
        raise ConfigError(
            f"expected a folder that `garrison serve --ledger` writes at {path}: {error.strerror}"
        ) from error
