"""What is run again, and what is not."""

from __future__ import annotations

import ctypes
import inspect
import time
from pathlib import Path

import pytest

from tests import stalls
from tests.stalls import RUNS_AGAIN, StallWatch, again_after_a_stall


def stand_still(seconds: float) -> None:
    """No thread of this process runs any Python meanwhile."""
    ctypes.PyDLL(None).usleep(round(seconds * 1e6))


class Body:
    """Fails as often as it is told, and stalls each time that it fails."""

    def __init__(self, failures: int, stalled: float, error: type[BaseException] = AssertionError) -> None:
        self.runs = 0
        self._failures, self._stalled, self._error = failures, stalled, error

    def __call__(self) -> None:
        self.runs += 1
        if self.runs <= self._failures:
            stand_still(self._stalled)
            raise self._error


def test_what_fails_without_a_stall_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "TOLERANCE_SECONDS", 60.0)  # whatever this machine does
    body = Body(1, 0.0)
    with pytest.raises(AssertionError):
        again_after_a_stall(body)()
    assert body.runs == 1


@pytest.mark.parametrize("error", [AssertionError, TimeoutError, pytest.fail.Exception])
def test_what_fails_in_a_stall_is_run_again(error: type[BaseException]) -> None:
    body = Body(2, 0.3, error)
    again_after_a_stall(body)()
    assert body.runs == 3


def test_what_fails_in_every_stall_fails() -> None:
    body = Body(100, 0.15)
    with pytest.raises(AssertionError):
        again_after_a_stall(body)()
    assert body.runs == 1 + RUNS_AGAIN


def test_what_is_skipped_or_good_is_not_run_again() -> None:
    skipped, good = Body(1, 0.3, pytest.skip.Exception), Body(0, 0.0)
    with pytest.raises(pytest.skip.Exception):
        again_after_a_stall(skipped)()
    again_after_a_stall(good)()
    assert (skipped.runs, good.runs) == (1, 1)


def test_a_stall_at_the_very_end_is_seen() -> None:
    with StallWatch() as watch:
        stand_still(0.3)
    assert watch.longest > 0.2


@again_after_a_stall
def test_a_test_that_sleeps_or_waits_is_no_stall() -> None:
    with StallWatch() as watch:
        time.sleep(0.5)
    assert watch.longest < 0.4


@again_after_a_stall
@pytest.mark.parametrize("value", [1, 2])
def test_fixtures_and_parameters_pass_through(tmp_path: Path, value: int) -> None:
    assert tmp_path.is_dir()
    assert value in {1, 2}
    assert "value" in inspect.signature(test_fixtures_and_parameters_pass_through).parameters
