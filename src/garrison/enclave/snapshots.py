"""Sealed snapshots of caller state, on the host's side: asked for every few seconds, kept in memory, and in a file that is replaced whole.

    STATE/callers/DIGEST.0.sealed     the latest snapshot of the model with that manifest
    STATE/callers/DIGEST.0.key        what snapshots are sealed under, used where the model has no misinformation key
    STATE/callers/DIGEST.0.lock       held by who writes them

Without an enclave each front worker runs the models itself, and so do two servers with one folder: whoever comes finds the first place that nobody
holds, and goes on from what lies there. Invariants: a file appears whole or not at all; one place has one writer.

The host reads nothing in a snapshot, and checks nothing of it but its length: the enclave does.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from garrison.crypto.snapshots import KEY_BYTES, OVERHEAD_BYTES
from garrison.enclave.caller_state import CallerState
from garrison.errors import GarrisonError, UnavailableError
from garrison.guard.state import MOST_STATE_BYTES

logger = logging.getLogger(__name__)

EVERY_SECONDS = 3.0
"""Between two snapshots, where something has changed."""
_REST = 100.0
"""So many times as long as a snapshot took, none is asked for: at most a hundredth of the enclave's time goes into them."""
_PLACES = 256
MOST_BYTES = MOST_STATE_BYTES + OVERHEAD_BYTES
_CLOSE_SECONDS = 10.0

Take = Callable[[], bytes | None]


class Snapshots:
    """The latest snapshot of one model's caller state.

    Args:
        folder: where files lie; None to keep the latest in memory alone, where it outlives an enclave and not the server.
        manifest: the model's digest, in hex.

    Attributes:
        latest: None where there is none.
        key: 32 bytes that stay the same as long as the files do.
    """

    def __init__(self, folder: Path | None, manifest: str) -> None:
        self.latest: bytes | None = None
        self.key = secrets.token_bytes(KEY_BYTES)
        self._place: Path | None = None
        self._lock = -1
        if folder is None:
            return
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._place = self._claim(folder, manifest)
            if self._place is not None:
                self.key = _lasting_key(self._place.with_suffix(".key"))
                self.latest = _read(self._place)
        except OSError as error:
            self.close()
            logger.warning("caller state is kept in memory alone: %s: %s", folder, error.strerror)

    def keep(self, snapshot: bytes) -> None:
        """Put a snapshot in the place of the one before; where the disk fails, in memory alone."""
        self.latest = snapshot
        if self._place is None:
            return
        try:
            _write(self._place, snapshot)
        except OSError as error:
            logger.warning("a snapshot of caller state cannot be written: %s: %s", self._place, error.strerror)

    def close(self) -> None:
        """Let another have the place."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock, self._place = -1, None

    def _claim(self, folder: Path, manifest: str) -> Path | None:
        for number in range(_PLACES):
            place = folder / f"{manifest}.{number}.sealed"
            lock = os.open(place.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            self._lock = lock
            return place
        logger.warning("caller state is kept in memory alone: %d others hold places in %s", _PLACES, folder)
        return None


class SnapshotKeeper:
    """Asks for a snapshot every few seconds, on a thread of its own.

    Args:
        snapshots: where they go.
        take: asks the enclave; what it raises on purpose means that there is none now.
    """

    def __init__(self, snapshots: Snapshots, take: Take) -> None:
        self._snapshots = snapshots
        self._take = take
        self._stopping = threading.Event()
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="garrison-snapshots", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last one, while the enclave still answers, and end."""
        self._stopping.set()
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._once()
        self._snapshots.close()

    def now(self) -> None:
        """Take one at once: what an operator has done lasts when it is answered."""
        self._once()

    def _work(self) -> None:
        rest = EVERY_SECONDS
        while not self._stopping.wait(rest):
            rest = max(EVERY_SECONDS, _REST * self._once())

    def _once(self) -> float:
        """How long the enclave took."""
        with self._turn:
            return self._taken()

    def _taken(self) -> float:
        start = time.perf_counter()
        snapshot = None
        try:
            snapshot = self._take()
        except GarrisonError as error:
            # An enclave that is being replaced has none to give, which is no news; a state that is too large is.
            log = logger.debug if isinstance(error, UnavailableError) else logger.warning
            log("no snapshot of caller state: %s", error)
        except Exception:
            logger.exception("a snapshot of caller state failed")
        took = time.perf_counter() - start
        if snapshot is not None:
            self._snapshots.keep(snapshot)
        return took


def keep_state(state: CallerState, folder: Path | None, manifest: str) -> SnapshotKeeper | None:
    """Have a service in this process go on from its latest snapshot, and make more; None where its guard remembers nothing.

    Raises:
        StateError: a defense must remember, and cannot.
    """
    if not state.kept:
        return None
    snapshots = Snapshots(folder, manifest)
    try:
        state.resume(snapshots.latest, snapshots.key)
    except BaseException:
        snapshots.close()
        raise
    return SnapshotKeeper(snapshots, state.take)


def _read(file: Path) -> bytes | None:
    try:
        with file.open("rb") as opened:
            found = opened.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(found) > MOST_BYTES:
        logger.warning("%s is longer than a snapshot of caller state can be; it is not used", file)
        return None
    return found


def _lasting_key(file: Path) -> bytes:
    """The key in the file, which is made where there is none, or no whole one."""
    with suppress(FileNotFoundError):
        found = file.read_bytes()
        if len(found) == KEY_BYTES:
            return found
    made = secrets.token_bytes(KEY_BYTES)
    _write(file, made)
    return made


def _write(file: Path, data: bytes) -> None:
    new = file.with_name(f".{file.name}.new")  # one writer a place
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    new.replace(file)
