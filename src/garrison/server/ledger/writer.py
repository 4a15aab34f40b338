"""Writes one chain, on a thread of its own: what many requests bring meanwhile is encoded, written and synchronised at once (group commit).

Invariants: who is told that a line is written finds it on the disk, whatever happens then; a line whose write failed is told so, and is taken out again before
another is written; a chain is gone on with only where its last file is whole, but for a line that a crash left unfinished at its end; nobody else writes to it.

The file is some zeros longer than what is written: a line that takes their place needs no new length and no new block, so to synchronise it takes half of the processor's and the
disk's time (measured on ext4). They are cut off when the file is closed.

Not covered: a disk that says it has written and has not. Lines of answers that never left: a crash, or a disk that fails while it synchronises, may leave some.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from garrison.errors import LedgerError, UnavailableError
from garrison.protocol.checkpoint import LEDGER_BYTES, SignedCheckpoint
from garrison.server.ledger.folder import claim_chain, create, open_own, segment_name, sync_folder
from garrison.server.ledger.records import FORMAT, Begin, Chain, Outage, Record, Segment
from garrison.server.ledger.recovery import Found, recover

logger = logging.getLogger(__name__)

STALL_SECONDS = 2.0
"""A disk that takes longer than this has no new questions computed: they would only wait with the others."""
_PROBE_SECONDS = 0.5
ROOM_BYTES = 256 * 1024
"""So many zeros stand after the last line, at most. Where there is no room for them the disk counts as full."""
_ROTATE_AGAIN_SECONDS = 60.0
_CLOSE_SECONDS = 10.0

Make = Callable[[Chain], bytes]
"""The lines of something, to come after a chain's end; takes the chain on."""
Done = Callable[[bool], None]
"""Told on the writer's thread whether the lines are on the disk."""
RecordAt = Callable[[int, float], Record]
"""The record, from its number and the time."""


class _Item(NamedTuple):
    make: Make
    done: Done
    requests: int


@dataclass(slots=True)
class _Failure:
    """The disk fails. `synced` is false where it is not known what is on it."""

    error: str
    since: float
    held: int
    synced: bool


class Writer:
    """See the module's docstring. `put`, `write` and the properties are for every thread.

    Args:
        ledger: the folder; the first chain in it that nobody writes to is taken.
        segment_bytes, segment_seconds: a longer or older file is followed by another.
        clock: seconds since the epoch.
        sync: has the disk write what a file holds.

    Raises:
        ConfigError: the folder cannot be used, or is not safe.
        LedgerError: the chain in it was tampered with.

    Attributes:
        path: the chain's folder.
        ledger: the chain's id, in hex.
        latest: the latest checkpoint, as it lay beside the chain.
        cut: bytes of an unfinished line that were cut off.
        files: how many files were begun, so that one notices a new one.
    """

    def __init__(
        self,
        ledger: Path,
        *,
        segment_bytes: int,
        segment_seconds: float,
        clock: Callable[[], float] = time.time,
        sync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self._segment_bytes, self._segment_seconds = segment_bytes, segment_seconds
        self._clock, self._sync = clock, sync
        self.path, self._lock = claim_chain(ledger)
        self._file = -1
        try:
            found = recover(self.path)
            self.ledger = secrets.token_hex(LEDGER_BYTES) if found is None else found.ledger
            self.latest: SignedCheckpoint | None = None if found is None else found.latest
            self.cut = 0 if found is None else found.cut
            self._open(found)
        except BaseException as error:
            self._release()
            if isinstance(error, OSError):
                raise LedgerError(f"{self.path} cannot be written: {error.strerror}") from error
            raise
        self.files = 1
        self._failure: _Failure | None = None
        self._busy_since: float | None = None
        self._rotate_from = 0.0
        self._ending = self._ended = False
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="garrison-ledger", daemon=True)
        self._thread.start()

    @property
    def position(self) -> tuple[int, bytes]:
        """Number of the last entry that is on the disk, and the chain's hash there."""
        chain = self._chain
        return chain.seq - 1, chain.head

    def why_not(self) -> str:
        """Why nothing can be written just now; "" where it can."""
        failure, since = self._failure, self._busy_since
        if failure is not None:
            return f"the ledger cannot be written: {failure.error}"
        if since is not None and time.monotonic() - since > STALL_SECONDS:
            return "the ledger's disk does not answer"
        return "the ledger is not written any more" if self._ended else ""

    def put(self, make: Make, done: Done, requests: int = 0) -> None:
        """Have something written. Waits for nothing. `requests`: how many are held back where it cannot be."""
        self._queue.put(_Item(make, done, requests))

    def write(self, record_at: RecordAt, seconds: float = _CLOSE_SECONDS) -> None:
        """Write one record, and wait until it is on the disk.

        Raises:
            UnavailableError: it is not.
        """
        told: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.put(lambda chain: chain.add(record_at(chain.seq, self.now())), told.put)
        with suppress(queue.Empty):
            if told.get(timeout=seconds):
                return
        raise UnavailableError(self.why_not() or "the ledger cannot be written just now; try again")

    def now(self) -> float:
        """The time, as it stands in records."""
        return int(self._clock() * 1e6) / 1e6

    def close(self) -> None:
        """Write what is waiting, and let another have the chain."""
        self._queue.put(None)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.error("the ledger's disk does not answer; %s is left as it is", self.path)
            return
        with suppress(OSError):
            self._trim()
        self._release()

    def _release(self) -> None:
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    def _open(self, found: Found | None) -> None:
        if found is None:
            self._chain, self._offset, self._room = Chain(), 0, 0
            path = self.path / segment_name(0)
            path.unlink(missing_ok=True)  # one that holds not even a first line
            self._file = create(path)
            self._append_record(lambda seq, now: Begin(seq, now, self.ledger, FORMAT))
            self._born = self.now()
            return
        self._file = open_own(found.path)
        os.ftruncate(self._file, found.whole)
        self._chain, self._offset, self._born = found.chain, found.whole, found.born
        self._room = self._offset
        if found.unended:
            self._append(b"\n")
        os.fsync(self._file)
        sync_folder(self.path)

    def _work(self) -> None:
        try:
            while not self._ending:
                waiting = self._next()
                if self._failure is not None and not self._repair():
                    self._hold(waiting)
                elif waiting:
                    self._rotate_if_due()
                    self._commit(waiting)
                waiting.clear()  # what was written is let go of now, and not when more comes
            if self._failure is not None:
                self._repair()
        finally:
            self._ended = True  # asked for at each question; to ask the thread itself takes 0.6 us

    def _next(self) -> list[_Item]:
        """All that is waiting; while the disk fails, nothing after a while."""
        waiting: list[_Item] = []
        try:
            item = self._queue.get(timeout=None if self._failure is None else _PROBE_SECONDS)
        except queue.Empty:
            return waiting
        while item is not None:
            waiting.append(item)
            if self._queue.empty():
                return waiting
            item = self._queue.get()
        self._ending = True
        return waiting

    def _commit(self, waiting: list[_Item]) -> None:
        chain = self._chain.copy()
        lines: list[bytes] = []
        written: list[_Item] = []
        for item in waiting:
            seq, head = chain.seq, chain.head
            try:
                lines.append(item.make(chain))
                written.append(item)
            except Exception:
                logger.exception("something could not be written to the ledger")
                chain.seq, chain.head = seq, head
                item.done(False)  # noqa: FBT003  a callback
        self._busy_since = time.monotonic()
        try:
            self._append(b"".join(lines))
        except OSError as error:
            held = sum(item.requests for item in written)
            self._failure = _Failure(_cause(error), self.now(), held, _is_of_write(error))
            logger.error("the ledger cannot be written, so nothing is answered: %s: %s", self.path, _cause(error))  # noqa: TRY400
        else:
            self._chain = chain
        finally:
            self._busy_since = None
        for item in written:
            item.done(self._failure is None)

    def _hold(self, waiting: list[_Item]) -> None:
        for item in waiting:
            item.done(False)  # noqa: FBT003  a callback
            if self._failure is not None:
                self._failure.held += item.requests

    def _append(self, data: bytes) -> None:
        """Put bytes at the end, on the disk. Where that fails, the end is where it was."""
        end = self._offset + len(data)
        if end > self._room:
            self._make_room(end)
        self._put(data, self._offset)
        try:
            self._sync(self._file)
        except OSError as error:
            raise _SyncError(error.errno, error.strerror) from error
        self._offset = end

    def _make_room(self, end: int) -> None:
        """Put zeros where a line is to stand that ends at `end`, and after it. Zeros are no line: a crash here does no harm."""
        end += min(ROOM_BYTES, self._segment_bytes)
        try:
            self._put(bytes(end - self._room), self._room)
        except OSError:
            os.ftruncate(self._file, self._room)
            raise
        self._room = end

    def _put(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file, view, at)
            if written <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            at, view = at + written, view[written:]

    def _trim(self) -> None:
        """Cut off what stands after the end."""
        os.ftruncate(self._file, self._offset)
        self._room = self._offset

    def _append_record(self, record_at: RecordAt) -> None:
        chain = self._chain.copy()
        self._append(chain.add(record_at(chain.seq, self.now())))
        self._chain = chain

    def _repair(self) -> bool:
        """Whether the disk writes again; then the chain tells of the time in between."""
        failure = self._failure
        if failure is None:
            return True
        try:
            self._trim()
            if not failure.synced:
                self._sync(self._file)
                self._rotate()  # what the system believes to be in the old file may not be on the disk
                failure.synced = True
            self._append_record(lambda seq, now: Outage(seq, now, failure.since, failure.held, failure.error))
        except OSError as error:
            failure.error = _cause(error)
            failure.synced = failure.synced and _is_of_write(error)
            return False
        self._failure = None
        logger.warning("the ledger is written again; %d requests were held back meanwhile", failure.held)
        return True

    def _rotate_if_due(self) -> None:
        now = self._clock()
        due = self._offset >= self._segment_bytes or not 0 <= now - self._born < self._segment_seconds
        if not due or now < self._rotate_from:
            return
        try:
            self._rotate()
        except OSError as error:
            self._rotate_from = now + _ROTATE_AGAIN_SECONDS
            logger.warning("no new file can be begun in %s: %s", self.path, _cause(error))

    def _rotate(self) -> None:
        """Go on in another file."""
        path = self.path / segment_name(self._chain.seq)
        self._trim()
        old, offset, chain = self._file, self._offset, self._chain
        self._file, self._offset, self._room = create(path), 0, 0
        try:
            before = chain.head.hex()
            self._append_record(lambda seq, now: Segment(seq, now, self.ledger, FORMAT, before))
        except OSError:
            os.close(self._file)
            self._file, self._offset, self._room, self._chain = old, offset, offset, chain
            path.unlink(missing_ok=True)
            raise
        os.close(old)
        self._born = self.now()
        self.files += 1


class _SyncError(OSError):
    """The disk did not synchronise: what is on it is not known."""


def _is_of_write(error: OSError) -> bool:
    return not isinstance(error, _SyncError)


def _cause(error: OSError) -> str:
    return error.strerror or type(error).__name__
