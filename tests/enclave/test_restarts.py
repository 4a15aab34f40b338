"""Whoever was ready is followed at once, but not by a start for every request that kills it; who never was ready is tried ever more slowly."""

from __future__ import annotations

import pytest

from garrison.enclave.restarts import AT_ONCE, EVERY_SECONDS, MOST_PAUSE_SECONDS, Restarts

START_SECONDS = 0.5


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_killed_every_second_and_a_half_it_never_waits_while_starts_are_free(clock: Clock) -> None:
    restarts = Restarts(clock)
    for _ in range(AT_ONCE):
        clock.now += 1.5
        assert restarts.died() == 0.0


def test_killed_now_and_then_it_never_waits_at_all(clock: Clock) -> None:
    restarts = Restarts(clock)
    for _ in range(1_000):
        clock.now += EVERY_SECONDS
        assert restarts.died() == 0.0


def test_an_input_that_kills_it_in_a_loop_does_not_have_a_start_each_time(clock: Clock) -> None:
    """For an hour, from the moment that it serves again; the control, without the bound, would start 7,200 times."""
    restarts, starts, end = Restarts(clock), 0, clock.now + 3_600.0
    while clock.now < end:
        clock.now += restarts.died() + START_SECONDS
        starts += 1
    assert AT_ONCE + 3_600.0 / EVERY_SECONDS - 2 <= starts <= AT_ONCE + 3_600.0 / EVERY_SECONDS + 1
    clock.now += AT_ONCE * EVERY_SECONDS  # the loop has ended; soon all is as it was
    assert [restarts.died() for _ in range(AT_ONCE)] == [0.0] * AT_ONCE
    assert restarts.died() > 0.0


def test_who_does_not_become_ready_is_tried_ever_more_slowly(clock: Clock) -> None:
    restarts = Restarts(clock)
    pauses = [restarts.failed() for _ in range(2_000)]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == MOST_PAUSE_SECONDS
    assert restarts.died() == 0.0
    assert restarts.failed() == 0.5, "it was ready in between"
