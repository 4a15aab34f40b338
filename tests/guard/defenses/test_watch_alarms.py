"""When an alarm rings, for whom, and what it says; detectors that fail."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from tests.guard.conftest import make_inputs, make_scores
from tests.guard.detectors.chains import know
from tests.guard.detectors.watched import TINY, ask, state_of

from garrison.errors import GuardError
from garrison.guard.watching.state import Rows


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch)


def test_an_alarm_is_told_once_and_a_name_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    state = state_of()
    with caplog.at_level(logging.WARNING):
        for seed in range(5):
            ask(state, 20, "a\nb", seed=seed)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == "watch.alarm: caller 'a\\nb', detector tiny, action misinform: row 10, 10.0 nats of 10.0"


def test_a_large_request_is_alarmed_in_the_middle_of_itself() -> None:
    silent = ask(state_of(threshold=1000.0), 5000, "thief")
    np.testing.assert_array_equal(np.flatnonzero(silent), np.arange(999, 5000))


def test_more_callers_than_are_remembered() -> None:
    state = state_of(callers=3)
    ask(state, 20, "thief")
    ask(state, 2, *(f"caller {i}" for i in range(10)), low=False)
    assert len(state) == 3
    assert state.level("thief") == 1, "whoever is alarmed is not pushed out by newcomers"
    ask(state, 20, *(f"other {i}" for i in range(5)))
    assert len(state) == 3
    state.forget("other 4")
    assert len(state) == 2


def test_linked_callers_are_alarmed_together_and_each_is_told_of() -> None:
    linking = {"tiny": TINY, "linking": {"threshold": 1.0}}
    state, control = state_of(detectors=linking), state_of()
    names = [f"account {i}" for i in range(6)]
    for which in (state, control):
        for name in names:
            x = make_inputs(3, seed=hash(name) % 1000)
            picture = np.zeros((3, 8), np.float32)
            which.observe([name], np.zeros(3, np.intp), Rows({"x": x}, picture, np.full(3, 0.1), make_scores(3).values))
    assert not control.alarms(), "control: none of them asked enough"
    alarms = {alarm.caller: alarm for alarm in state.alarms() if alarm.detector == "tiny"}
    assert set(alarms) == set(names)
    assert alarms["account 0"].group == 4
    assert alarms["account 0"].rows == 12
    assert alarms["account 4"].row == 3
    assert alarms["account 5"].group > 4
    assert all(state.level(name) == 1 for name in names)


def test_a_detector_that_fails_refuses_and_in_shadow_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    both = {"tiny": TINY, "failing": {"threshold": 1.0}}
    with pytest.raises(GuardError, match="the detector failing fails"):
        ask(state_of(detectors=both), 3, "anyone")
    both["failing"] = {"threshold": 1.0, "shadow": True}
    with caplog.at_level(logging.ERROR):
        assert ask(state_of(detectors=both), 20, "thief")[-1]
    assert "fails, in shadow" in caplog.text


def test_a_shadow_detector_rings_and_does_nothing() -> None:
    state = state_of(detectors={"tiny": TINY | {"shadow": True}})
    assert not ask(state, 50, "thief").any()
    (alarm,) = state.alarms()
    assert (alarm.row, alarm.action, alarm.active, state.level("thief")) == (10, "", True, 0)


@pytest.mark.parametrize("shadow", [False, True])
def test_evidence_that_is_not_finite_refuses_but_in_shadow(shadow: bool) -> None:
    both = {"tiny": TINY, "unsound": {"threshold": 1.0, "shadow": shadow}}
    state = state_of(detectors=both)
    if shadow:
        assert ask(state, 20, "thief")[-1], "a detector in shadow changes nothing"
        assert [a.detector for a in state.alarms()] == ["tiny"]
    else:
        with pytest.raises(GuardError, match="unsound is not finite"):
            ask(state, 20, "thief")


def test_who_is_alarmed_with_others_alone_is_not_pushed_out_by_newcomers() -> None:
    linking = {"tiny": TINY, "linking": {"threshold": 1.0}}
    state = state_of(detectors=linking, callers=6)
    for name in ("one", "two", "three", "four"):
        picture = np.zeros((3, 8), np.float32)
        state.observe(
            [name], np.zeros(3, np.intp), Rows({"x": make_inputs(3)}, picture, np.full(3, 0.1), make_scores(3).values)
        )
    assert not any(state.alone.rings_somewhere(place) for _, place in state.places), "control: only together"
    for i in range(20):
        ask(state, 1, f"newcomer {i}", low=False, first=float(i + 1))
    assert all(state.level(name) == 1 for name in ("one", "two", "three", "four"))
