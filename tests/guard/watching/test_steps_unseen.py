"""Thieves who know the matrix of `projection`: steps where it does not look, and small steps that it shows as large ones."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from garrison.guard.defenses.projection import matrix
from garrison.guard.detectors.base import Seen
from garrison.guard.detectors.near_duplicates import NearDuplicates
from garrison.guard.watching.book import Armed
from garrison.guard.watching.remembered import Settings
from garrison.guard.watching.state import Rows, WatchState
from garrison.hardening.near import fit_near_duplicates
from garrison.hardening.shifts import PLAIN
from garrison.types import FloatArray, InputFacts, ModelFacts, Task

FEATURES, WIDTH, SEEDS, ROWS = 200, 32, 100, 300
MATRIX = matrix(FEATURES, WIDTH, 0)
BLIND = np.eye(FEATURES) - MATRIX @ np.linalg.pinv(MATRIX)
"""To the part of an input that the public projection does not look at."""
STEP = 3.0


class Public(NearDuplicates, frozen=True, dict=True):
    """The control arm: looks at the public projection."""

    secret_projection = False


def pictures(rows: int, seed: int) -> FloatArray:
    """Lumps, as inputs of a few kinds are."""
    middles = np.random.default_rng(77).normal(size=(60, FEATURES)) * 1.5
    rng = np.random.default_rng(seed)
    found: FloatArray = middles[rng.integers(0, 60, rows)] + rng.normal(size=(rows, FEATURES)) * 0.6
    return found.astype(np.float32)


def facts() -> ModelFacts:
    low, high = np.full(FEATURES, -99, np.float32), np.full(FEATURES, 99, np.float32)
    spec = InputFacts("x", np.dtype(np.float32), (FEATURES,), low, high, np.zeros(FEATURES, np.bool_))
    return ModelFacts(Task.CLASSIFICATION, (spec,), ("a", "b"), 2, np.dtype(np.float32), False, False)


@pytest.fixture(scope="module")
def fitted() -> NearDuplicates:
    nothing = np.zeros(1500, np.float32)
    number = np.zeros(1500, dtype=np.intp)
    pool = Seen(number, number, pictures(1500, 1) @ MATRIX, nothing, nothing, number)
    found = fit_near_duplicates({PLAIN: pool}, seed=0)
    assert found is not None
    return msgspec.structs.replace(found, threshold=13.0)


def public(of: NearDuplicates) -> Public:
    """As it was before rows that project alike said anything."""
    return Public(**{name: getattr(of, name) for name in of.__struct_fields__} | {"equal": 0.0})


def first_alarm(detector: NearDuplicates, x: FloatArray, remembered: int = 2048) -> int | None:
    state = WatchState(Settings((Armed("near-duplicates", detector, 1, shadow=False),), 1e9, 8, remembered), facts())
    values = np.tile(np.array([0.9, 0.1], np.float32), (10, 1))
    for start in range(0, len(x), 10):
        part = x[start : start + 10]
        rows = Rows({"x": part}, (part @ MATRIX).astype(np.float32), values[:, 0], values)
        state.observe(["one"], np.zeros(10, dtype=np.intp), rows)
    return min((alarm.row for alarm in state.alarms()), default=None)


def thief(way: str) -> FloatArray:
    rng = np.random.default_rng(9)
    found = pictures(ROWS, 5)
    for row in range(SEEDS, ROWS):
        source, step = found[rng.integers(row)], rng.normal(size=FEATURES)
        if way == "blind":
            step = BLIND @ step
        found[row] = source + STEP * step / np.linalg.norm(step)
        if way == "amplified":  # as far as unrelated rows project, by a small change of the input
            away = rng.normal(size=WIDTH)
            found[row] += np.linalg.pinv(MATRIX).T @ away * 12.0 / np.linalg.norm(away)
    return found


@pytest.mark.parametrize("way", ["plain", "blind", "amplified"])
def test_steps_are_seen_wherever_they_go(fitted: NearDuplicates, way: str) -> None:
    row = first_alarm(fitted, thief(way))
    assert row is not None
    assert SEEDS < row < SEEDS + 80
    seen = first_alarm(public(fitted), thief(way))
    in_time = seen is not None and seen < SEEDS + 80
    assert in_time == (way == "plain"), "control: in the public projection only plain steps are seen"


def test_honest_rows_are_not(fitted: NearDuplicates) -> None:
    for seed in range(6, 12):
        assert first_alarm(fitted, pictures(500, seed)) is None


def test_steps_smaller_than_the_rounding_are_no_repeats(fitted: NearDuplicates) -> None:
    """As they are asked to estimate a gradient. Control: the very same rows, and a watch that remembers none."""
    x = pictures(ROWS, 6)
    x[SEEDS:] = x[np.arange(ROWS - SEEDS) % SEEDS] + 1e-4 * np.random.default_rng(3).normal(
        size=(ROWS - SEEDS, FEATURES)
    )
    row = first_alarm(fitted, x)
    assert row is not None
    assert row < SEEDS + 40
    again = x.copy()
    again[SEEDS:] = x[np.arange(ROWS - SEEDS) % SEEDS]
    assert first_alarm(fitted, again) is None
    assert first_alarm(fitted, again, remembered=0) is None
