"""How soon a process that has ended is started again.

One that was ready and dies is followed by another at once: whoever kills it, a crash or the system, callers wait for nothing longer than a
start. What that would allow is bounded: an input that kills whoever reads it, sent again and again, would otherwise have a start for every request,
each with a fresh layout of memory to try and with the last seconds of caller state forgotten. So there are `AT_ONCE` such starts, and one
more for each `EVERY_SECONDS` that pass. One that does not become ready is tried again after pauses that double, as no caller gains by haste.
"""

from __future__ import annotations

import time
from collections.abc import Callable

AT_ONCE = 10
EVERY_SECONDS = 10.0
FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.5, 30.0


class Restarts:
    """The starts of one process after another. To be used from one thread.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._due = clock()
        """When all starts that were used up so far will have been given back."""

    def died(self) -> float:
        """One that was ready has died: seconds to wait before the next start."""
        now = self._clock()
        self._failures = 0
        self._due = max(self._due, now) + EVERY_SECONDS
        return max(0.0, self._due - AT_ONCE * EVERY_SECONDS - now)

    def failed(self) -> float:
        """A start has failed: seconds to wait before the next."""
        self._failures += 1
        return min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 30), MOST_PAUSE_SECONDS)
