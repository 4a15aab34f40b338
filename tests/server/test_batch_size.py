"""A batch is as large as pays: learned from what batches take, and learned again when that changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from garrison.server.batch_size import FIRST_ROWS, RETRY_BATCHES, BatchSize


def serve(size: BatchSize, batches: int, seconds: Callable[[int], float], waiting: int = 256) -> list[int]:
    """Batches as they form while there is always enough waiting."""
    found = []
    for _ in range(batches):
        rows = int(size.most(waiting))
        size.note(rows, seconds(rows))
        found.append(rows)
    return found


def test_a_large_model_is_not_batched() -> None:
    """ResNet-18: 34 ms a row, whatever the batch."""
    size = BatchSize()
    assert serve(size, 5, lambda rows: 0.034 * rows) == [FIRST_ROWS, 1, 2, 2, 1]
    assert set(serve(size, 200, lambda rows: 0.034 * rows)) == {1}


def test_a_small_model_is_batched_without_a_bound() -> None:
    """LeNet: 12 us a row and as much again for a run."""
    size = BatchSize()
    size.note(1, 24e-6)
    assert size.most(256) == 256


def test_a_model_that_gains_to_a_point_is_batched_to_there() -> None:
    def seconds(rows: int) -> float:
        return 0.02 * max(rows, 4)  # four rows at once cost as much as one

    size = BatchSize()
    serve(size, 20, seconds)
    assert size.most(256) == 4


def test_a_model_whose_batches_cost_the_same_is_batched_as_far_as_wanted() -> None:
    size = BatchSize()
    assert serve(size, 10, lambda _: 0.05)[-1] == 256


def test_a_single_slow_batch_is_no_reason_for_ever() -> None:
    def gains(rows: int) -> float:
        return 0.02 + 0.001 * rows

    size = BatchSize()
    size.note(1, gains(1))
    for _ in range(2):
        size.note(2, 10.0)
    assert size.most(256) == 1
    serve(size, RETRY_BATCHES + 20, gains)
    assert size.most(256) >= 16


def test_a_small_queue_teaches_nothing_wrong() -> None:
    """Single requests now and then: more than one row is tried as soon as there is one."""
    size = BatchSize()
    for _ in range(50):
        size.note(1, 0.034)
    assert size.most(256) == 2
    for _ in range(2):
        size.note(2, 0.068)
    assert size.most(256) == 1


@pytest.mark.parametrize(("second", "most"), [(0.002, 256), (0.0125, FIRST_ROWS // 2)])
def test_the_first_batch_of_a_size_finds_cold_caches_and_bounds_nothing(second: float, most: int) -> None:
    size = BatchSize()
    size.note(FIRST_ROWS, 0.0125)
    size.note(FIRST_ROWS // 2, 0.002)
    assert size.most(256) == FIRST_ROWS
    size.note(FIRST_ROWS, second)
    assert size.most(256) == most
