"""What a report tells of one row among others that its reader knows."""

from __future__ import annotations

import msgspec
import numpy as np
from tests.guard.drifting.streams import ask, fresh, rows

from garrison.guard.drifting.report import DriftReport

NAMES = [f"caller {k}" for k in range(10)]


def told(value: float) -> DriftReport:
    """The host sends 255 rows of its own and one that is not."""
    state = fresh()
    x = rows(12_800, seed=2)
    x[-1] = 0.0
    x[-1, 4] = value
    ask(state, x, NAMES)
    return state.report()


def test_one_row_among_known_ones_moves_nothing_that_is_told_without_inputs() -> None:
    """The control: with all figures that row is read off."""
    one, other = told(0.1), told(0.9)
    assert one != other
    assert one.without_inputs() == other.without_inputs()


def test_two_reports_never_differ_by_a_few_rows_not_even_around_a_snapshot() -> None:
    state = fresh()
    x = rows(6_400 + 20, seed=3)
    x[:, 4] += np.float32(0.3)
    ask(state, x[:6_400], NAMES)
    before = state.report()
    assert before.callers
    ask(state, x[6_400:6_410], NAMES)
    state.dump()  # counts what is gathered
    ask(state, x[6_410:], NAMES)
    state.dump()
    after = state.report()
    assert msgspec.structs.replace(after, rows=before.rows) == before


def test_an_alarm_is_told_all_the_same() -> None:
    state = fresh()
    x = rows(12_800, seed=2)
    x[:, 0] += 0.5
    ask(state, x, NAMES)
    found, bare = state.report(), state.report().without_inputs()
    assert [a.column for a in bare.alarms] == [a.column for a in found.alarms]
    assert bare.ringing
    for kind, value in bare.values.items():
        assert abs(value - found.values[kind]) <= found.thresholds[kind] / 8 * 1.001
