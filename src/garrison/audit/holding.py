"""One audit at a time writes into a folder: two would cut off each other's kept answers."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from garrison.errors import AuditError, FolderInUseError

LOCK = "lock"


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep other audits out of a folder, which is made where it is not there.

    The lock is the kernel's, on an empty file that stays: it ends with the process that holds it, however that ends.

    Raises:
        FolderInUseError: another audit holds it.
        AuditError: nothing can be written or locked there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise AuditError(f"{folder / LOCK} cannot be opened: {error.strerror}") from error
    try:
        _take(lock, folder)
        yield
    finally:
        os.close(lock)


def _take(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FolderInUseError(
            f"{folder}: another audit is writing there; wait until it has ended (the same command then goes on from what it kept), "
            "or write into another folder"
        ) from error
    except OSError as error:
        raise AuditError(f"{folder / LOCK} cannot be locked: {error.strerror}") from error
