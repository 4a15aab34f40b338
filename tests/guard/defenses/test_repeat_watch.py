"""Callers who repeat themselves are counted rightly, in little memory, and named."""

from __future__ import annotations

import hashlib
import logging

import msgspec
import numpy as np
import pytest
from tests.guard.conftest import make_batch, make_facts, make_inputs

from garrison.errors import GuardError
from garrison.guard.base import View
from garrison.guard.defenses.repeat_watch import REGISTERS, RepeatWatch, Seen, _add, estimate
from garrison.guard.pipeline import load_defense
from garrison.guard.row_hash import LONG
from garrison.guard.state import Callers
from garrison.types import Array, Batch, Caller, DefenseSpec, Released

NOTHING = Released({})


def fresh(watch: RepeatWatch) -> Callers[Seen]:
    state = watch.fresh_state(make_facts())
    assert isinstance(state, Callers)
    return state


def ask(
    watch: RepeatWatch, state: Callers[Seen], x: Array, names: tuple[str, ...] = ("alice",), **more: object
) -> None:
    per = len(x) // len(names)
    batch = Batch(
        {"x": x}, np.repeat(np.arange(len(names), dtype=np.intp), per), tuple(map(Caller, names)), (-1,) * len(names)
    )
    watch(View(batch, make_facts(), state=state, **more), NOTHING)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 50, 500, 5_000, 50_000])
def test_the_estimate_is_within_three_standard_errors(count: int) -> None:
    registers = bytearray(REGISTERS)
    for i in range(count):
        _add(registers, hashlib.blake2b(i.to_bytes(8, "big"), digest_size=8).digest())
    assert abs(estimate(registers) - count) <= max(1.0, 0.2 * count)


def test_repeats_count_as_rows_and_not_as_different_ones() -> None:
    watch = RepeatWatch()
    state = fresh(watch)
    x = make_inputs(20)
    for _ in range(30):
        ask(watch, state, x)
    seen = state.of("alice")
    assert seen.rows == 600
    assert 14 <= seen.distinct <= 26  # the key is drawn anew: 4.5 deviations of 6.5 % each way
    ask(watch, state, make_inputs(500, seed=3), ("bob",))
    assert 350 <= state.of("bob").distinct <= 500


def test_callers_of_one_batch_are_counted_apart_and_as_alone() -> None:
    watch = RepeatWatch()
    together, alone = fresh(watch), fresh(watch)
    alone.secret = together.secret
    x = make_inputs(36)
    names = ("alice", "bob", "alice")
    ask(watch, together, x, names)
    for i, name in enumerate(names):
        for row in range(12):
            ask(watch, alone, x[12 * i + row : 12 * i + row + 1], (name,))
    for name, rows in (("alice", 24), ("bob", 12)):
        assert together.of(name).rows == alone.of(name).rows == rows
        assert together.of(name).registers == alone.of(name).registers


@pytest.mark.parametrize("size", [48, LONG])
def test_large_inputs_are_counted_as_small_ones_are(size: int) -> None:
    """They are hashed another way."""
    watch = RepeatWatch()
    state = fresh(watch)
    x = np.random.default_rng(0).random((20, size // 4), dtype=np.float32)
    for _ in range(3):
        ask(watch, state, x)
    seen = state.of("alice")
    assert seen.rows == 60
    assert 14 <= seen.distinct <= 26


def test_zero_and_minus_zero_are_one_row_and_what_was_refused_is_none() -> None:
    watch = RepeatWatch()
    state = fresh(watch)
    zeros = np.zeros((2, 12), np.float32)
    zeros[1] = -0.0
    ask(watch, state, zeros)
    assert state.of("alice").registers.count(0) == REGISTERS - 1
    ask(watch, state, make_inputs(4), ("bob", "eve"), refused=(False, True))
    assert state.get("eve") is None
    assert state.of("bob").rows == 2


def test_who_repeats_is_named_and_at_each_doubling_again(caplog: pytest.LogCaptureFixture) -> None:
    watch = RepeatWatch(rows=100)
    state = fresh(watch)
    x = make_inputs(10)
    with caplog.at_level(logging.WARNING):
        for _ in range(45):
            ask(watch, state, x)
    assert [r.getMessage()[:42] for r in caplog.records] == [
        f"repeat-watch: caller 'alice' has asked {n} r"[:42] for n in (100, 200, 400)
    ]
    caplog.clear()
    for seed in range(45):
        ask(watch, state, make_inputs(10, seed=seed), ("honest",))
    assert caplog.records == [], "control: who asks different rows is not named"


def test_a_name_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    watch = RepeatWatch(rows=1)
    state = fresh(watch)
    for _ in range(4):
        ask(watch, state, make_inputs(1), ("a\nb",))
    assert caplog.records
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_memory_is_bounded() -> None:
    watch = RepeatWatch(callers=64)
    state = fresh(watch)
    for i in range(200):
        ask(watch, state, make_inputs(1, seed=i), (f"caller {i}",))
    assert len(state) == 64
    full = len(state.dump())
    for i in range(200, 400):
        ask(watch, state, make_inputs(1, seed=i), (f"caller {i}",))
    assert len(state.dump()) == full
    assert full < 64 * 400


def test_what_is_kept_comes_back_and_goes_on() -> None:
    watch = RepeatWatch()
    state, again = fresh(watch), fresh(watch)
    x = make_inputs(30)
    ask(watch, state, x)
    again.load(state.dump())
    ask(watch, again, x)
    assert again.of("alice").rows == 60
    assert again.of("alice").registers == state.of("alice").registers


@pytest.mark.parametrize(
    "bad",
    [
        [1, 0.0, 0.0, 0, bytes(3)],
        [1, 0.0, 0.0, 0, b"\xff" * REGISTERS],
        [-1, 0.0, 0.0, 0, bytes(REGISTERS)],
        [1, float("nan"), 0.0, 0, bytes(REGISTERS)],
        [1, 0.0, 0.0, 0, bytes(REGISTERS), 1],
    ],
)
def test_records_that_cannot_be_are_refused(bad: list[object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, Seen)
    msgspec.convert([1, 0.0, 0.0, 0, bytes(REGISTERS)], Seen)


@pytest.mark.parametrize("parameters", [{"callers": 0}, {"callers": 10**6}, {"rows": 0}, {"share": 0}, {"share": 1.5}])
def test_bad_parameters_are_refused(parameters: dict[str, object]) -> None:
    with pytest.raises(GuardError, match="repeat-watch"):
        load_defense(DefenseSpec(name="repeat-watch", parameters=parameters))


def test_it_does_not_run_without_its_memory() -> None:
    with pytest.raises(GuardError, match="keeps state"):
        RepeatWatch()(View(make_batch(make_inputs(1)), make_facts()), NOTHING)
