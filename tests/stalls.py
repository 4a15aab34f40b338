"""For tests that are about the real clock by their nature: where the machine stood still meanwhile, a failure says nothing, and the test is run again.

Better is a test that no stall can touch: one that waits for events, has a clock of its own, or asks for times so far apart that no stall counts.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec

import pytest

logger = logging.getLogger(__name__)

BEAT_SECONDS = 0.01
TOLERANCE_SECONDS = 0.1
"""A machine that stood still for longer counts as stalled."""
RUNS_AGAIN = 5
FAILURES = (Exception, pytest.fail.Exception)

PATIENT_SECONDS = 60.0
"""What must come and does not come within this time does not come: longer than any machine stalls."""

Parameters = ParamSpec("Parameters")


def wait_until(good: Callable[[], bool], seconds: float = PATIENT_SECONDS) -> None:
    """Look again and again.

    Raises:
        AssertionError: it was not so within that time.
    """
    end = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < end, f"it was not so within {seconds:g} s"
        time.sleep(0.01)


class StallWatch:
    """Sleeps for short times, again and again, and notes by how much a sleep was too long; nothing else.

    Attributes:
        longest: the longest stall that was seen, in seconds; complete once the block has ended.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> StallWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._end.wait(BEAT_SECONDS):
            before = self._note(before)
        self._note(before)

    def _note(self, before: float) -> float:
        now = time.monotonic()
        self.longest = max(self.longest, now - before - BEAT_SECONDS)
        return now


def again_after_a_stall(test: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """A test that is run again, at most `RUNS_AGAIN` times, where it failed and the machine stalled meanwhile.

    What fails without a stall fails at once, and what fails each time fails. The test must not mind what an earlier run of it left in its fixtures.
    """

    @functools.wraps(test)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        for left in reversed(range(RUNS_AGAIN + 1)):
            watch = StallWatch()
            try:
                with watch:
                    return test(*args, **kwargs)
            except FAILURES:
                if not left or watch.longest <= TOLERANCE_SECONDS:
                    raise
                logger.warning("run again: it failed, and the machine stood still for %.2f s", watch.longest)
        raise AssertionError  # never reached: the last run returns or raises

    return run
