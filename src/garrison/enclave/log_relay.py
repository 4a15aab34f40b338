"""Passes on what an enclave's process writes to its standard error, so that the process never waits for whoever reads it.

    theirs, log = relay()           # `theirs` becomes the standard error of the process, and is closed here
    ...                             # the process ends
    log.join(1.0)

Its end of the pipe does not block: what does not fit is lost, and the enclave goes on. Our end is read by a thread, which writes it to our own
standard error, so much in a time; if that blocks, the pipe fills, and the enclave still goes on.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

MOST_BYTES, PERIOD_SECONDS = 256 * 1024, 10.0
"""So much of the log is passed on in so many seconds. A process that was taken over shall not fill the disk."""
_PIECE_BYTES = 1 << 16
_STANDARD_ERROR = 2


def relay(write: Callable[[bytes], None] | None = None) -> tuple[int, threading.Thread]:
    """A descriptor for a process to write its log to, and the thread that passes it on until all its writers have ended.

    Args:
        write: where to; None for our standard error.
    """
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    thread = threading.Thread(
        target=_pass_on, args=(ours, write or _to_standard_error), name="garrison-enclave-log", daemon=True
    )
    thread.start()
    return theirs, thread


def _pass_on(ours: int, write: Callable[[bytes], None]) -> None:
    begun, left, lost = time.monotonic(), MOST_BYTES, 0
    try:
        while data := os.read(ours, _PIECE_BYTES):
            now = time.monotonic()
            if now - begun >= PERIOD_SECONDS:
                _tell(lost, write)
                begun, left, lost = now, MOST_BYTES, 0
            if data[:left]:
                write(data[:left])
            lost += max(0, len(data) - left)
            left = max(0, left - len(data))
        _tell(lost, write)
    finally:
        os.close(ours)


def _tell(lost: int, write: Callable[[bytes], None]) -> None:
    if lost:
        write(b"\n(%d bytes of the enclave's log are left out: it wrote too much at once)\n" % lost)


def _to_standard_error(data: bytes) -> None:
    view = memoryview(data)
    with contextlib.suppress(OSError):  # it is closed: nobody wants to read it
        while view:
            view = view[os.write(_STANDARD_ERROR, view) :]
