"""Rows that wait: weighed later, many at once, and nothing else changes: the same alarms at the same rows, the same answers, the same memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from tests.guard.conftest import make_facts
from tests.guard.detectors.chains import Clock
from tests.guard.detectors.test_contract import CLASSES, EXAMPLES, WIDTH
from tests.guard.detectors.tiny import Linking

from garrison.errors import GuardError
from garrison.guard.defenses.projection import matrix
from garrison.guard.defenses.watch import load_detector
from garrison.guard.detectors.base import Detector, Seen
from garrison.guard.detectors.ood_rate import OodRate
from garrison.guard.watching import waiting
from garrison.guard.watching.book import Armed
from garrison.guard.watching.digests import Hasher
from garrison.guard.watching.remembered import MOST_TICK, Settings
from garrison.guard.watching.state import Rows, WatchState
from garrison.guard.watching.waiting import MOST_OF_ONE, MOST_WAITING, Inputs, Read
from garrison.types import Array, BoolArray, FloatArray

ALONE = tuple(name for name in EXAMPLES if name != "accounts")
"""Detectors of which none looks at several callers together."""
FEATURES = 12
CALLERS = [f"caller {i}" for i in range(10)]
THIEF, STRANGER = 3, 7
APART = np.float32(4)
"""So far rows lie apart that no detector takes them for steps."""
DAY = 86_400.0
Batch = tuple[list[str], Array, Rows]


def state_of(*detectors: Detector, callers: int = 1024, half_life: float = DAY) -> WatchState:
    armed = tuple(Armed(d.name, d, 1, shadow=False) for d in detectors)
    state = WatchState(Settings(armed, half_life, callers, 256), make_facts())
    state.clock = Clock()
    return state


def registered(*names: str) -> list[Detector]:
    return [load_detector(name, {"threshold": 9.0, **EXAMPLES[name]}) for name in names]


def twins(*detectors: Detector, **more: Any) -> tuple[WatchState, WatchState]:
    """Two states with equal secrets; in the second no row ever waits."""
    lazy, eager = state_of(*detectors, **more), state_of(*detectors, **more)
    lazy.open(WIDTH)
    eager.load(lazy.dump())
    eager.clock = lazy.clock
    eager.waiting.may = lambda *_: False  # type: ignore[method-assign]
    return lazy, eager


def rows_of(x: FloatArray, confidence: FloatArray) -> Rows:
    values = np.repeat((1 - confidence[:, np.newaxis]) / (CLASSES - 1), CLASSES, axis=1)
    values[np.arange(len(x)), np.arange(len(x)) % CLASSES] = confidence
    return Rows({"x": x}, x @ matrix(FEATURES, WIDTH, 0), confidence, values)


def traffic(seed: int, batches: int = 160) -> Iterator[Batch]:
    """Batches of some callers, most with one row each. One steps from rows of its own, one asks strange things from some time on; some rows come again."""
    rng = np.random.default_rng(seed)
    past: dict[int, list[Array]] = {i: [] for i in range(len(CALLERS))}
    for number in range(batches):
        who = rng.permutation(len(CALLERS))[: rng.integers(1, len(CALLERS) + 1)]
        owner = np.repeat(np.arange(len(who)), rng.choice([1, 1, 1, 1, 2, 6], len(who)))
        x = APART * rng.random((len(owner), FEATURES), np.float32)
        confidence = rng.uniform(0.85, 1.0, len(owner)).astype(np.float32)
        for i, caller in enumerate(who[owner].tolist()):
            mine = past[caller]
            if mine and rng.random() < 0.1:
                x[i] = mine[rng.integers(len(mine))]
            elif caller == THIEF and len(mine) > 30:
                x[i] = mine[-1] + np.float32(1e-3) * rng.normal(size=FEATURES)
            elif caller == STRANGER and number > batches / 2:
                confidence[i] = 0.3
            mine.append(x[i])
        yield [CALLERS[i] for i in who], owner, rows_of(x, confidence)


def asked(state: WatchState, batch: Batch) -> BoolArray:
    found = state.observe(*batch)
    return np.zeros(len(batch[1]), dtype=np.bool_) if found is None else found


def same_memory(one: WatchState, other: WatchState) -> None:
    one.settle()
    for mine, its in zip(tables(one), tables(other), strict=True):
        for name in mine:
            np.testing.assert_allclose(mine[name], its[name], rtol=1e-12, atol=1e-12, err_msg=name)


def tables(state: WatchState) -> list[Mapping[str, Array]]:
    of_callers = (state.book.table, state.alone.table, state.groups.evidence.table, state.rings.table, *state.tables)
    return [*(table.arrays for table in of_callers), *state.shared]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("half_life", [DAY, 3_000.0])
def test_the_same_as_if_every_batch_were_weighed_as_it_comes(seed: int, half_life: float) -> None:
    lazy, eager = twins(*registered(*ALONE), half_life=half_life)
    waited = rung = 0
    for number, batch in enumerate(traffic(seed)):
        lazy.clock.now += 0.01 + 30 * (number % 20 == 0)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(asked(lazy, batch), found := asked(eager, batch))
        rung += int(found.sum())
        waited += bool(lazy.waiting.rows)
        for name in CALLERS:
            assert lazy.level(name) == eager.level(name), "also while rows wait"
            assert lazy.this_minute(name) == eager.this_minute(name)
    same_memory(lazy, eager)
    mine, its = lazy.alarms(), eager.alarms()
    assert [(a.caller, a.detector, a.row, a.since) for a in mine] == [
        (a.caller, a.detector, a.row, a.since) for a in its
    ]
    np.testing.assert_allclose([(a.nats, a.evidence) for a in mine], [(a.nats, a.evidence) for a in its], rtol=1e-12)
    assert {a.caller for a in mine} >= {CALLERS[THIEF], CALLERS[STRANGER]}, "control: alarms ring"
    assert rung, "control: answers change"
    assert waited > 20, "control: rows wait"


class Bounded(Linking, frozen=True):
    """Says nothing of rows, but links whoever asks the row that another has just asked."""

    most = 0.0


def alike(number: int) -> Batch:
    """Four accounts ask about the same strange picture."""
    x = np.tile(APART * np.random.default_rng(number).random(FEATURES, np.float32), (4, 1))
    return CALLERS[:4], np.arange(4), rows_of(x, np.full(4, 0.3, np.float32))


def test_linked_accounts_are_found_as_if_what_waited_had_come_in_one_batch() -> None:
    detectors = [*registered("ood-rate", "near-duplicates"), Bounded(threshold=1.0)]
    (lazy, once), (_, eager) = twins(*detectors), twins(*detectors)
    pending: list[Batch] = []
    late = 0
    for number in range(9):
        batch = alike(number)
        asked(lazy, batch)
        asked(eager, batch)
        pending.append(batch)
        if not lazy.waiting.rows:
            asked(once, together(pending))
            pending = []
        late += bool(eager.groups) and not lazy.groups
    assert not pending, "who is linked does not wait"
    for mine, its in ((lazy.alone, once.alone), (lazy.groups.evidence, once.groups.evidence)):
        np.testing.assert_allclose(mine.table["sum"], its.table["sum"], rtol=1e-12)
    assert lazy.groups.size(0) == once.groups.size(0) == 4
    assert {a.caller for a in lazy.alarms()} == {a.caller for a in once.alarms()} == set(CALLERS[:4])
    assert 0 < late <= 5, "control: rows waited; never more than cannot ring alone"


def together(batches: list[Batch]) -> Batch:
    names = [name for callers, _, _ in batches for name in callers]
    starts = np.cumsum([0, *(len(callers) for callers, _, _ in batches)])
    owner = np.concatenate([start + owner for start, (_, owner, _) in zip(starts[:-1], batches, strict=True)])
    parts = [rows for _, _, rows in batches]
    x = np.concatenate([rows.inputs["x"] for rows in parts])
    return names, owner, Rows({"x": x}, *(np.concatenate(column) for column in list(zip(*parts, strict=True))[1:]))


def fresh_rows(count: int, seed: int = 0, confidence: float = 0.95) -> Rows:
    x = APART * np.random.default_rng(seed).random((count, FEATURES), np.float32)
    return rows_of(x, np.full(count, confidence, np.float32))


def each(state: WatchState, names: list[str], seed: int = 0, confidence: float = 0.95) -> BoolArray | None:
    return state.observe(names, np.arange(len(names)), fresh_rows(len(names), seed, confidence))


def test_the_detectors_run_once_for_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy, eager = twins(*registered("ood-rate", "near-duplicates", "small-steps"))
    for state, most in ((lazy, 20), (eager, 60)):
        passes: list[int] = []
        weigh = state._weigher
        monkeypatch.setattr(state, "_weigher", lambda *a, w=weigh, p=passes: (p.append(len(a[0].place)), w(*a))[1])
        for number in range(60):
            each(state, CALLERS, number)
        state.settle()
        assert sum(passes) == 60 * len(CALLERS), "every row is weighed, once"
        assert len(passes) <= most
    assert len(passes) == 60, "control: without waiting once a batch"


def digests_of(state: WatchState, rows: Rows) -> Array:
    return Hasher(make_facts(), state.secret)(rows.inputs)


def test_inputs_wait_as_copies() -> None:
    state = state_of(*registered("ood-rate", "near-duplicates"))
    rows = fresh_rows(1)
    state.observe(["one"], np.zeros(1, dtype=np.intp), rows)
    place = state.places.find("one")
    digest = digests_of(state, rows)
    rows.inputs["x"][:] = 0  # whoever asked may use its array again
    state.settle()
    assert state.rings.knows(np.array([place]), digest).all()
    assert not state.rings.knows(np.array([place]), digests_of(state, rows)).any(), "control"


def test_inputs_are_read_together_as_far_as_they_may_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    row_bytes = 4 * FEATURES
    for most, reads in ((waiting.MOST_HELD, [9]), (4 * row_bytes, [3, 5, 1]), (row_bytes - 1, [3, 5, 1])):
        monkeypatch.setattr(waiting, "MOST_HELD", most)
        seen: list[int] = []

        def read(inputs: Mapping[str, Array], seen: list[int] = seen) -> Read:
            seen.append(len(inputs["x"]))
            return Read(inputs["x"].copy(), None)

        held, x = Inputs(make_facts(), read), fresh_rows(9).inputs["x"]
        for part in (slice(0, 3), slice(3, 8), slice(8, 9)):
            held.add({"x": x[part]}, len(x[part]))
        np.testing.assert_array_equal(held.take().sketch, x)
        assert seen == reads
        assert len(held._held["x"]) * row_bytes <= most, "control: no more is held"


def test_how_much_waits_is_bounded() -> None:
    rare = load_detector("ood-rate", {"threshold": 1e6, **EXAMPLES["ood-rate"]})
    state, longest = state_of(rare), 0
    for number in range(40):
        each(state, [f"caller {i}" for i in range(number * 40, (number + 1) * 40)], number)
        longest = max(longest, state.waiting.rows)
    assert MOST_WAITING - 40 < longest <= MOST_WAITING
    state, longest = state_of(rare), 0
    for number in range(40):
        each(state, ["one"], number)
        longest = max(longest, state.waiting.rows)
    assert longest == MOST_OF_ONE


def test_nothing_waits_for_a_detector_without_a_bound() -> None:
    class Boundless(OodRate, frozen=True, dict=True):
        most = sure = float("inf")

    bounded, boundless = state_of(*registered("ood-rate")), state_of(Boundless(threshold=9.0, **EXAMPLES["ood-rate"]))
    for state in (bounded, boundless):
        each(state, CALLERS)
    assert bounded.waiting.rows, "control"
    assert not boundless.waiting.rows


def test_nothing_waits_for_another_tick() -> None:
    state = state_of(*registered("ood-rate"))
    each(state, ["one"])
    each(state, ["two"], 1)
    assert state.waiting.rows == 2
    state.clock.now += MOST_TICK  # type: ignore[attr-defined]
    each(state, ["three"], 2)
    assert state.waiting.rows == 1


def test_who_is_alarmed_does_not_wait_and_lets_nobody_wait_before() -> None:
    state = state_of(*registered("ood-rate"))
    for number in range(12):
        each(state, ["thief"], number, confidence=0.3)
    assert state.level("thief") == 1
    each(state, ["honest"], 20)
    assert state.waiting.rows == 1, "control: others wait while an alarm rings"
    assert each(state, ["thief"], 21) is not None
    assert not state.waiting.rows


@pytest.mark.parametrize("read", ["alarms", "dump", "forget"])
def test_whoever_reads_finds_all_weighed(read: str) -> None:
    state = state_of(*registered("ood-rate"))
    each(state, ["one", "two"], confidence=0.3)
    place = state.places.find("two")
    assert state.waiting.rows == 2
    assert state.alone.table["sum"][place, 0] == 0, "control"
    getattr(state, read)(*(["one"] if read == "forget" else []))
    assert not state.waiting.rows
    assert state.alone.table["sum"][place, 0] == 1.0


def test_what_waits_is_forgotten_with_all_the_rest() -> None:
    state = state_of(*registered("ood-rate"))
    each(state, ["one", "two"], confidence=0.3)
    state.clear()
    assert not state.waiting.rows
    each(state, ["one", "two"], confidence=0.3)
    other = state_of(*registered("ood-rate"))
    each(other, ["three"])
    state.load(other.dump())
    assert not state.waiting.rows
    assert [name for name, _ in state.places] == ["three"]


def test_after_a_restart_no_more_rows_wait_than_before() -> None:
    state = state_of(*registered("ood-rate"))
    for number in range(8):
        each(state, ["thief"], number, confidence=0.3)
    again = state_of(*registered("ood-rate"))
    again.load(state.dump())
    assert each(again, ["thief"], 8, confidence=0.3) is not None, "nine nats are the threshold"
    assert each(state_of(*registered("ood-rate")), ["thief"], 8, confidence=0.3) is None, "control"


def test_newcomers_do_not_inherit_rows_that_wait() -> None:
    state = state_of(*registered("ood-rate"), callers=3)
    for number in range(12):
        each(state, [f"caller {number}"], number, confidence=0.3)
    state.settle()
    assert state.book.table["asked"].max() == 1
    assert state.alone.table["sum"].max() == 1.0


class Fussy(Detector, frozen=True):
    """Says 1 nat of every row, and fails on those of confidence 0.5."""

    name: ClassVar[str] = "fussy"
    most = 2.0

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:
        if (seen.confidence == np.float32(0.5)).any():
            raise RuntimeError("a detector's fault")
        return np.ones(len(seen.place))


def test_a_row_that_fails_after_it_waited_counts_as_much_as_one_can(caplog: pytest.LogCaptureFixture) -> None:
    state = state_of(Fussy(threshold=20.0))
    each(state, ["good"])
    each(state, ["bad"], 1, confidence=0.5)
    with caplog.at_level(logging.ERROR):
        state.settle()
    sums = {name: state.alone.table["sum"][place, 0] for name, place in state.places}
    assert sums == {"good": 1.0, "bad": 2.0}
    assert "cannot be weighed" in caplog.text


def test_a_failing_row_that_is_asked_refuses_its_own_request_and_costs_nobody_a_row() -> None:
    state = state_of(Fussy(threshold=3.0))
    each(state, ["good"])
    assert state.waiting.rows == 1
    with pytest.raises(GuardError, match="the detector fussy fails"):
        state.observe(["bad"], np.zeros(2, dtype=np.intp), fresh_rows(2, 1, confidence=0.5))
    sums = {name: state.alone.table["sum"][place, 0] for name, place in state.places}
    assert sums == {"good": 1.0, "bad": 0.0}
