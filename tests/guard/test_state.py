"""What defenses remember: bounded, and nothing is believed that they did not write."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from tests.guard.conftest import make_batch, make_facts, make_inputs

from garrison.errors import StateError
from garrison.guard import state as state_module
from garrison.guard.base import RecordDefense, View
from garrison.guard.defenses import DEFENSES
from garrison.guard.failing import DEFENSE_FAILED
from garrison.guard.pipeline import Pipeline, Progress
from garrison.guard.state import SECRET_BYTES, Callers, ChainState
from garrison.types import DefenseSpec, Phase, Released


class Count(msgspec.Struct, forbid_unknown_fields=True):
    rows: int = 0

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise ValueError("negative")


def table(most: int = 3, version: int = 1) -> Callers[Count]:
    return Callers(Count, version=version, most=most)


def test_who_asked_longest_ago_is_forgotten_first() -> None:
    callers = table(3)
    for name in ("a", "b", "c", "a", "d"):
        callers.of(name).rows += 1
    assert {name: record.rows for name, record in callers} == {"c": 1, "a": 2, "d": 1}
    assert callers.get("b") is None
    assert len(callers) == 3


def test_what_is_dumped_comes_back_in_its_order() -> None:
    callers, again = table(), table()
    for name in ("a", "b", "a"):
        callers.of(name).rows += 1
    again.load(callers.dump())
    assert list(again) == list(callers)
    assert again.secret == callers.secret
    assert again.dump() == callers.dump()


def good(**changes: Any) -> bytes:
    parts = {"version": 1, "secret": bytes(SECRET_BYTES), "callers": [("a", {"rows": 1})]} | changes
    return msgspec.msgpack.encode(list(parts.values()))


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\xc1",
        good()[:-1],
        good() + b"\0",
        good(version=2),
        good(version="1"),
        good(secret=b"short"),
        good(callers=[("a", {"rows": 1})] * 2),
        good(callers=[(str(i), {"rows": 1}) for i in range(4)]),
        good(callers=[("a" * 2000, {"rows": 1})]),
        good(callers=[("a", {"rows": -1})]),
        good(callers=[("a", {"rows": 1.5})]),
        good(callers=[("a", {"rows": 1, "more": 1})]),
        good(callers=b"a"),
        b"\x93" * 5000,
    ],
)
def test_nothing_is_loaded_of_what_is_no_dump(bad: bytes) -> None:
    callers = table()
    callers.of("known").rows = 7
    with pytest.raises(StateError):
        callers.load(bad)
    assert [(name, record.rows) for name, record in callers] == [("known", 7)]
    callers.load(good())
    assert [(name, record.rows) for name, record in callers] == [("a", 1)], "control"


def test_a_part_that_cannot_be_used_begins_anew_and_the_others_go_on() -> None:
    one, two = table(), table(version=2)
    one.of("a")
    two.of("b")
    chain = ChainState({"one": one, "two": two})
    dump = chain.dump()
    other = ChainState({"one": (fresh := table()), "two": (newer := table(version=3)), "three": table()})
    newer.of("x")
    refused = other.load(dump)
    assert set(refused) == {"two", "three"}
    assert "version 2" in refused["two"]
    assert [name for name, _ in fresh] == ["a"]
    assert len(newer) == 0


def test_a_dump_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "MOST_STATE_BYTES", 1000)
    callers = table(1000)
    chain = ChainState({"one": callers})
    assert len(chain.dump()) < 1000
    for i in range(200):
        callers.of(f"caller {i}")
    with pytest.raises(StateError, match="at most 1000"):
        chain.dump()


class Picky(RecordDefense, frozen=True):
    """Raises on a batch that holds a row of ones; counts the others."""

    name: ClassVar[str] = "picky"
    phase: ClassVar[Phase] = Phase.RECORD

    def fresh_state(self, facts: object) -> Callers[Count]:
        return table(100)

    def __call__(self, view: View, released: Released) -> None:
        assert len(released.uncertain) in {0, view.batch.rows}
        if (view.batch.inputs["x"] == 1).all(axis=1).any():
            raise RuntimeError("a defect")
        assert isinstance(view.state, Callers)
        for request in view.batch.request_of_row.tolist():
            view.state.of(view.batch.callers[request].id).rows += 1


@pytest.mark.parametrize("outputs", [{"y": np.zeros((4, 1))}, {}], ids=["answered", "nothing released"])
def test_a_defense_that_raises_refuses_the_request_on_which_it_does(
    monkeypatch: pytest.MonkeyPatch, outputs: dict[str, Any]
) -> None:
    monkeypatch.setitem(DEFENSES, "picky", "tests.guard.test_state:Picky")
    pipeline = Pipeline((DefenseSpec(name="release"), DefenseSpec(name="picky")), make_facts())
    x = make_inputs(4)
    x[1] = 1
    progress = Progress.begin(make_batch(x, (1, 1, 2)))
    pipeline.record(progress, Released(outputs, np.zeros(4 if outputs else 0, dtype=np.bool_)))
    assert progress.refused == [None, DEFENSE_FAILED, None]
    kept = pipeline.links[1].state
    assert isinstance(kept, Callers)
    assert {name: record.rows for name, record in kept} == {"caller 0": 1, "caller 2": 2}
