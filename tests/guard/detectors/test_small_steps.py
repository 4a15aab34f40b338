from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from garrison.guard.detectors.base import Seen
from garrison.guard.detectors.small_steps import SLOTS, SmallSteps
from garrison.hardening.callers import empty
from garrison.hardening.shifts import PLAIN
from garrison.hardening.small_steps import fit_small_steps
from garrison.hardening.watching import sums, take
from garrison.types import Array, FloatArray

WIDTH, CLASSES = 32, 4


def pool(seed: int, rows: int = 900) -> Seen:
    """Honest rows around a few class centres."""
    rng = np.random.default_rng(seed)
    top = rng.integers(0, CLASSES, rows)
    centres = 3 * np.random.default_rng(1).normal(size=(CLASSES, WIDTH))
    projection = (centres[top] + rng.normal(size=(rows, WIDTH))).astype(np.float32)
    nothing = np.zeros(rows, np.float32)
    return Seen(np.zeros(rows, np.intp), np.arange(rows), projection, nothing, nothing, top)


@pytest.fixture(scope="module")
def fitted() -> SmallSteps:
    found = fit_small_steps({PLAIN: pool(0), "noise": pool(2)}, seed=0)
    assert found is not None
    return msgspec.structs.replace(found, threshold=8.0)


def caller(projection: Array) -> Seen:
    nothing = np.zeros(len(projection), np.float32)
    place = np.zeros(len(projection), np.intp)
    return Seen(place, np.arange(len(projection)), projection.astype(np.float32), nothing, nothing, place)


def search(length: float, rows: int = 40, seed: int = 0, *, walks: bool = True) -> Array:
    """A picture, changed again and again by so much: each time from the last change, or from the picture itself."""
    rng = np.random.default_rng(seed)
    steps = length / math.sqrt(WIDTH) * rng.normal(size=(rows, WIDTH))
    found: Array = rng.normal(size=WIDTH) + (np.cumsum(steps, axis=0) if walks else steps)
    return found


def first(detector: SmallSteps, rows: Array) -> int:
    over = np.flatnonzero(sums(detector, [caller(rows)])[0] >= detector.threshold)
    return int(over[0]) + 1 if len(over) else 0


@pytest.mark.parametrize("walks", [True, False])
@pytest.mark.parametrize("length", [0.001, 0.01, 0.1, 1.0])
def test_a_search_rings_within_thirty_rows_and_honest_callers_never(
    fitted: SmallSteps, length: float, *, walks: bool
) -> None:
    assert 0 < first(fitted, search(length, walks=walks)) <= 30
    honest = [take(pool(7), np.random.default_rng(i).permutation(900)[:500]) for i in range(40)]
    assert sums(fitted, honest).max() < 0.8 * fitted.threshold


def test_control_steps_as_long_as_between_honest_rows_say_nothing(fitted: SmallSteps) -> None:
    assert first(fitted, search(12.0)) == 0


def distances(detector: SmallSteps, projection: Array) -> FloatArray:
    seen = caller(projection)
    columns = {name: empty(column, 1) for name, column in detector.columns(WIDTH).items()}
    return detector.nearest(seen, columns)


def test_the_distance_is_to_the_nearest_of_the_last_rows(fitted: SmallSteps) -> None:
    x = 3 * np.random.default_rng(3).normal(size=(50, WIDTH))
    x[30] = x[30 - SLOTS] + 0.5  # just remembered
    x[40] = x[40 - SLOTS - 1] + 0.5  # just forgotten
    found = distances(fitted, x)
    whole = np.rint(x / fitted.unit) * fitted.unit
    assert np.isinf(found[0])
    for row in range(1, 50):
        wanted = np.linalg.norm(whole[row] - whole[max(0, row - SLOTS) : row], axis=1).min()
        assert found[row] == pytest.approx(wanted, rel=1e-3)
    assert found[30] < 4 < found[40]


def test_rows_that_may_be_repeats_say_nothing(fitted: SmallSteps) -> None:
    same = np.repeat(search(1.0, 1), 20, axis=0)
    assert first(fitted, same) > 0
    assert first(fitted.among_repeats(), same) == 0
    assert first(fitted.among_repeats(), search(1.0)) > 0, "control: steps are seen all the same"


def test_too_few_rows_fit_nothing() -> None:
    assert fit_small_steps({PLAIN: pool(0, 100)}, seed=0) is None
