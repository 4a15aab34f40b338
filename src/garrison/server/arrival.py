"""An answer that the event loop waits for itself, as it does for its clients: no thread has to be woken to wait for it, and none to wake the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

THREAD_SECONDS = 1.0
"""What takes longer is waited for by a thread, which gives up when it has been too long."""


class Arrival:
    """Calls back once. To be used from the event loop alone.

    Args:
        descriptor: can be read from when the answer is there, or will never be.
        then: called with whether it can be.
    """

    __slots__ = ("_descriptor", "_since", "_then")

    def __init__(self, descriptor: int, then: Callable[[bool], None]) -> None:
        self._descriptor, self._then = descriptor, then
        self._since = time.monotonic()
        asyncio.get_running_loop().add_reader(descriptor, self._end, True)  # noqa: FBT003  a callback's

    def sweep(self) -> None:
        """Wait no longer, where it has been long; to be called now and then."""
        if time.monotonic() - self._since > THREAD_SECONDS:
            self._end(False)  # noqa: FBT003  a callback's

    def _end(self, there: bool) -> None:  # noqa: FBT001  a callback's
        asyncio.get_running_loop().remove_reader(self._descriptor)
        self._then(there)
