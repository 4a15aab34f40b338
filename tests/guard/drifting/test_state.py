"""Honest streams do not ring, shifted ones do, and it is said whose they are; what is remembered comes back."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from tests.guard.drifting.streams import answers, ask, facts, fitted, fresh, rows, until_alarm

from garrison.errors import StateError
from garrison.guard.drifting.state import DriftState
from garrison.types import FloatArray

NAMES = [f"caller {k}" for k in range(10)]


def leave(part: FloatArray, k: int) -> None:
    """Change nothing."""


def test_an_honest_stream_does_not_ring_and_the_same_stream_shifted_does() -> None:
    state, shifted = fresh(), fresh()
    x = rows(12_800, seed=2)
    ask(state, x, NAMES)
    assert not state.alarms
    assert 0 < state.peaks[0] < fitted().drift.thresholds["psi"]
    x[:, 0] += 0.5
    ask(shifted, x, NAMES)
    assert shifted.alarms
    alarm = shifted.alarms[0]
    assert alarm.column == "x[0]"
    assert alarm.row <= 5_000
    assert not any(alarm.named for alarm in shifted.alarms), "everybody's shift is nobody's"


def test_a_key_that_skews_slowly_is_named_within_2000_of_its_rows() -> None:
    def skew(part: FloatArray, k: int) -> None:
        part[3, 4] += 2.5 * min(1.0, k / 1_500)

    state = fresh()
    asked = until_alarm(state, 10, 2_000, skew)
    assert 0 < asked <= 2_000
    assert state.alarms[0].named == ("caller 3",)
    assert state.alarms[0].callers[0].explains > 0.8
    assert until_alarm(fresh(), 10, 1_500, leave) == -1, "control: the same stream as it was"


def test_two_keys_that_skew_together_are_named_together() -> None:
    def skew(part: FloatArray, k: int) -> None:
        part[[1, 2], 4] += 3.0

    state = fresh()
    assert until_alarm(state, 10, 1_000, skew) > 0
    assert set(state.alarms[0].named) == {"caller 1", "caller 2"}
    assert {c.caller for c in state.alarms[0].callers[:2]} == {"caller 1", "caller 2"}


def test_who_is_named_stays_with_the_alarm_whoever_moves_it_later(caplog: pytest.LogCaptureFixture) -> None:
    def skew(mover: int, place: int) -> Callable[[FloatArray, int], None]:
        def change(part: FloatArray, k: int) -> None:
            part[mover, place] += 3.0

        return change

    state = fresh()
    assert until_alarm(state, 10, 1_000, skew(2, 0)) > 0
    (first,) = state.alarms
    assert (first.named, first.moving) == (("caller 2",), ("caller 2",))
    caplog.clear()
    x = rows(30_000, seed=6)
    x[7::10, 0] += 3.0
    ask(state, x, NAMES)
    alarm = next(alarm for alarm in state.alarms if alarm.number == first.number)
    assert alarm.active
    assert (alarm.named, alarm.moving) == (("caller 2", "caller 7"), ("caller 7",))
    assert alarm.callers[0].caller == "caller 7"
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith(f"drift.named: alarm {first.number},")]
    assert len(told) == 1, "once"
    ask(state, rows(30_000, seed=7), NAMES)
    over = next(alarm for alarm in state.alarms if alarm.number == first.number)
    assert (over.active, over.named, over.moving) == (False, ("caller 2", "caller 7"), ())


def test_a_shift_of_the_answers_alone_rings() -> None:
    state = fresh()
    x = rows(6_400, seed=4)
    names = NAMES
    for start in range(0, len(x), 10):
        y = answers(x[start : start + 10])
        y[:5] = np.eye(3, dtype=np.float32)[0]
        state.observe(names, np.arange(10), {"x": x[start : start + 10]}, None, y)
    assert {alarm.kind for alarm in state.alarms} == {"predictions"}


def test_missing_values_that_the_reference_never_had_ring() -> None:
    def lose(part: FloatArray, k: int) -> None:
        part[::2, 3] = np.nan

    state = fresh()
    assert until_alarm(state, 10, 600, lose) > 0
    assert state.alarms[0].column == "x[3]"


def test_an_alarm_ends_when_the_shift_does() -> None:
    state = fresh()
    x = rows(20_480, seed=5)
    x[:5_120, 0] += 1.0
    ask(state, x, NAMES)
    assert state.alarms
    assert not state.report().ringing


def test_the_reference_never_moves() -> None:
    state = fresh()
    before = state.sketch.layout.shares.copy()
    x = rows(5_120, seed=6)
    x[:, 0] += 2.0
    ask(state, x, NAMES)
    np.testing.assert_array_equal(state.sketch.layout.shares, before)
    assert state.report().ringing, "however long it lasts, it is no new normal"


@pytest.mark.parametrize("batch", [1, 7, 256, 600])
def test_what_is_counted_does_not_depend_on_how_rows_are_batched(batch: int) -> None:
    whole, parts = fresh(), fresh()
    x = rows(1_280, seed=7)
    y = answers(x)
    for state, size in ((whole, 1_280), (parts, batch)):
        for start in range(0, len(x), size):
            part = slice(start, start + size)
            request = np.zeros(len(x[part]), np.intp)
            state.observe(["ann"], request, {"x": x[part]}, None, y[part])
    assert whole.report() == parts.report()


def test_a_dump_brings_back_what_was_known_and_holds_no_row() -> None:
    state, other = fresh(), fresh()
    x = rows(3_072, seed=8)
    x[:, 0] += 1.0
    x[5, 5] = np.float32(1.2345678)
    ask(state, x, NAMES)
    data = state.dump()
    other.load(data)
    assert other.report() == state.report()
    assert np.float32(1.2345678).tobytes() not in data
    assert other.alarms == state.alarms


@pytest.mark.parametrize("data", [b"", b"nonsense", msgspec.msgpack.encode([99] + [0] * 11)])
def test_what_is_no_dump_is_not_loaded(data: bytes) -> None:
    state = fresh()
    ask(state, rows(512, seed=9), NAMES)
    before = state.report()
    with pytest.raises(StateError):
        state.load(data)
    assert state.report() == before


def test_a_dump_of_another_reference_is_not_loaded() -> None:
    state = fresh()
    columns = tuple(msgspec.structs.replace(c, name=f"other {c.name}") for c in fitted().drift.columns)
    other = msgspec.structs.replace(fitted().drift, columns=columns).fresh_state(facts())
    assert isinstance(other, DriftState)
    with pytest.raises(StateError, match="other columns"):
        state.load(other.dump())
