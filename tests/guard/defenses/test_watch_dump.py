"""What a watch remembers leaves it as bytes and comes back; it is bounded."""

from __future__ import annotations

import numpy as np
import pytest
from tests.guard.conftest import make_inputs, make_scores
from tests.guard.detectors.chains import know
from tests.guard.detectors.watched import TINY, ask, state_of

from garrison.errors import StateError
from garrison.guard.watching import dump
from garrison.guard.watching.state import Rows, WatchState


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch)


def test_who_did_not_fit_into_a_dump_is_forgotten_by_what_detectors_share(monkeypatch: pytest.MonkeyPatch) -> None:
    linking = {"tiny": TINY, "linking": {"threshold": 1.0}}
    state = state_of(detectors=linking, callers=64)
    ask(state, 1, "last", low=False)
    data, again = state.dump(), state_of(detectors=linking, callers=64)
    again.load(data)
    assert again.shared[1]["last"][1] == again.places.find("last"), "control"
    monkeypatch.setattr(dump, "MOST_BYTES", 0)
    again.load(state.dump())
    assert len(again) == 0
    assert again.shared[1]["last"][1] == -1


def test_what_is_kept_comes_back_and_goes_on() -> None:
    state = state_of()
    ask(state, 9, "thief")
    ask(state, 30, "known")
    again = state_of()
    again.load(state.dump())
    assert again.alarms() == state.alarms()
    assert again.level("known") == 1
    assert ask(again, 1, "thief", seed=3)[0], "nine nats were kept, the tenth rings"
    assert not ask(again, 9, "known")[:9].any(), "rows that were answered honestly are known still"
    assert again.tables[0]["count"][again.places.find("thief")] == 10
    np.testing.assert_array_equal(
        again.shared[0]["all"], [40], err_msg="rows that were asked before are not shown again"
    )
    assert len(again) == 2


def test_a_dump_is_bounded_and_keeps_the_notable_first(monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of(callers=64)
    ask(state, 20, "thief")
    for i in range(60):
        ask(state, 1, f"caller {i}", low=False, seed=i)
    monkeypatch.setattr(dump, "MOST_BYTES", 40_000)
    data = state.dump()
    assert len(data) < 41_000
    again = state_of(callers=64)
    again.load(data)
    assert [a.caller for a in again.alarms()] == ["thief"], "counters and alarms of all"
    assert not ask(again, 9, "thief").any(), "and what the alarmed one asked before"
    assert len(again) == 61
    assert ask(again, 1, "thief", seed=99)[0]


def test_who_is_alarmed_is_dumped_before_who_asked_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone or with others; of the rest the latest."""
    linking = {"tiny": TINY, "linking": {"threshold": 1.0}}
    state = state_of(callers=64, detectors=linking)
    ask(state, 20, "thief", first=-5.0)
    for i in range(4):
        x = make_inputs(3, seed=i)
        state.observe(
            [f"account {i}"],
            np.zeros(3, np.intp),
            Rows({"x": x}, np.zeros((3, 8), np.float32), np.full(3, 0.1), make_scores(3).values),
        )
    for i in range(50):
        ask(state, 1, f"caller {i}", low=False, seed=i, first=float(i + 1))
    monkeypatch.setattr(dump, "MOST_BYTES", 10_000)
    again = state_of(callers=64, detectors=linking)
    again.load(state.dump())
    assert len(again) < 40
    wanted = {alarm.caller for alarm in state.alarms() if alarm.detector == "tiny"}
    assert {alarm.caller for alarm in again.alarms() if alarm.active} == wanted
    assert len(wanted) == 5
    kept = sorted(int(name.split()[1]) for name, _ in again.places if name.startswith("caller"))
    assert kept == list(range(50 - len(kept), 50)), "control: of the others the latest"


@pytest.mark.parametrize("bad", ["", "junk", "cut", "version", "detector", "callers"])
def test_what_is_no_dump_is_refused_and_nothing_of_it_used(bad: str) -> None:
    state, other = state_of(), state_of()
    ask(state, 20, "thief")
    ask(other, 12, "mine")
    data = {
        "": b"",
        "junk": b"\xc1junk",
        "cut": state.dump()[:-9],
        "version": b"\x9a" + bytes([dump.VERSION + 1]) + state.dump()[2:],
        "detector": _dump_of(state_of(detectors={})),
        "callers": _dump_of(state_of(callers=2), "a", "b", "c"),
    }[bad]
    if bad == "callers":
        other = state_of(callers=1)
        ask(other, 12, "mine")
    with pytest.raises(StateError):
        other.load(data)
    assert [a.caller for a in other.alarms()] == ["mine"]


def _dump_of(state: WatchState, *names: str) -> bytes:
    ask(state, 2, *(names or ("somebody",)))
    return state.dump()


def test_memory_a_caller_does_not_grow() -> None:
    state = state_of(callers=64)
    for i in range(64):
        ask(state, 40, f"caller {i}", seed=i)
    full = len(state.dump())
    for i in range(64, 74):
        ask(state, 300, f"caller {i}", seed=i)
    assert abs(len(state.dump()) - full) < 500
