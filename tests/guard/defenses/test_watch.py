"""An alarm changes what a caller is answered, in both forms alike, from the very row on; nobody else's answers, and none that the caller had before."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from tests.guard.conftest import make_batch, make_facts, make_inputs, make_scores
from tests.guard.detectors.chains import REJECT, Clock, chain, know, watch
from tests.models import Sealed, images, seal_mlp

from garrison.crypto.owner import OwnerKey
from garrison.enclave.service import Service
from garrison.errors import GuardError, RefusedError, StateError, ThrottledError
from garrison.guard.base import View
from garrison.guard.defenses.watch import Watch
from garrison.guard.graph_form import GraphForm, fits, settings_of
from garrison.guard.numpy_form import NumpyForm
from garrison.guard.pipeline import Pipeline, load_defense, tighten
from garrison.guard.watching import dump
from garrison.guard.watching.state import Rows, WatchState
from garrison.runtime.runner import Runner
from garrison.types import Array, Batch, BoolArray, Caller, DefenseSpec

ROWS = 96


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sealed]:
    with pytest.MonkeyPatch.context() as patch:
        know(patch)
        folder, owner = tmp_path_factory.mktemp("watched"), OwnerKey.generate()
        chains = {
            "misinform": chain(watch()),
            "reject": chain(watch(), REJECT),
            "refuse": chain(watch(), DefenseSpec(name="reject-option", parameters={"tau": 0.6, "action": "refuse"})),
        }
        return {name: seal_mlp(folder / name, specs, owner=owner) for name, specs in chains.items()}


def form_of(sealed: Sealed, kind: str, *, shadow: bool = False) -> tuple[GraphForm | NumpyForm, WatchState]:
    bundle = sealed.verified()
    specs = (structs.replace(s, shadow=shadow and s.name == "watch") for s in bundle.manifest.guard)
    pipeline = Pipeline(tuple(specs), bundle.manifest.facts(), sealed.key)
    assert fits(bundle.manifest.guard, pipeline)
    state = next(link.state for link in pipeline.links if link.defense.name == "watch")
    assert isinstance(state, WatchState)
    state.clock = Clock()
    if kind == "numpy":
        return NumpyForm(pipeline, Runner(bundle).run), state
    assert bundle.manifest.guarded is not None, bundle.manifest.numpy_because
    return GraphForm(pipeline, Runner(bundle, settings=settings_of(pipeline))), state


def batch_of(x: Array, *names: str) -> Batch:
    owners = np.repeat(np.arange(len(names), dtype=np.intp), len(x) // len(names))
    return Batch({"image": x}, owners, tuple(map(Caller, names)), (-1,) * len(names))


def answers(form: GraphForm | NumpyForm, x: Array, *names: str) -> tuple[Array, BoolArray]:
    """What is released, and rows that were replaced."""
    done = form(batch_of(x, *(names or ("thief",))))
    assert done is not None
    progress, released = done
    assert not any(progress.refused), progress.refused
    return released.outputs["probabilities"], progress.replaced


@pytest.mark.parametrize("name", ["misinform", "reject"])
@pytest.mark.parametrize("size", [1, 8, 32])
def test_both_forms_answer_alike_before_and_after_the_alarm(sealed: dict[str, Sealed], name: str, size: int) -> None:
    x = images(ROWS)
    found: dict[str, list[Array]] = {}
    for kind in ("numpy", "graph"):
        form, state = form_of(sealed[name], kind)
        parts = [answers(form, x[i : i + size]) for i in range(0, ROWS, size)]
        found[kind] = [np.concatenate([p[j] for p in parts]) for j in (0, 1)]
        (alarm,) = state.alarms()
        found[kind].append(np.array(alarm.row))
    np.testing.assert_allclose(found["graph"][0], found["numpy"][0], atol=1e-5)
    np.testing.assert_array_equal(found["graph"][1], found["numpy"][1])
    replaced, row = found["numpy"][1], int(found["numpy"][2])
    assert 10 <= row < ROWS / 2
    assert replaced[row - 1 :].all(), "from the very row on, whatever the size of a request"
    assert not replaced[: row - 1].all(), "control: honest answers before it"


def test_the_row_of_the_alarm_does_not_depend_on_how_rows_are_cut(sealed: dict[str, Sealed]) -> None:
    x, rows, all_replaced = images(ROWS), set(), []
    for size in (1, 3, 32, ROWS):
        form, state = form_of(sealed["misinform"], "graph")
        replaced = np.concatenate([answers(form, x[i : i + size])[1] for i in range(0, ROWS, size)])
        rows.add(state.alarms()[0].row)
        all_replaced.append(replaced)
    assert len(rows) == 1
    for replaced in all_replaced[1:]:
        np.testing.assert_array_equal(replaced, all_replaced[0])


@pytest.mark.parametrize("shadow", [True, False])
def test_in_shadow_an_alarm_claims_no_action(
    sealed: dict[str, Sealed], caplog: pytest.LogCaptureFixture, *, shadow: bool
) -> None:
    form, state = form_of(sealed["misinform"], "graph", shadow=shadow)
    with caplog.at_level(logging.WARNING):
        answers(form, images(ROWS))
    (alarm,) = state.alarms()
    assert alarm.action == ("" if shadow else "misinform")
    assert ("in shadow" in caplog.text) is shadow


@pytest.mark.parametrize("size", [1, 8, 32, ROWS])
def test_rows_asked_again_are_no_cover(sealed: dict[str, Sealed], size: int) -> None:
    """Twenty times the same row, of which the detector thinks well, after each new one; in whatever requests."""
    x = images(ROWS)
    form, state = form_of(sealed["misinform"], "graph")
    answers(form, x)
    alone = state.alarms()[0]
    raw = Runner(sealed["misinform"].verified()).run({"image": images(500, seed=9)}).values.max(axis=1)
    honest = images(500, seed=9)[raw >= 0.9][:1]
    assert len(honest) == 1
    covered = np.concatenate([np.concatenate([row[np.newaxis], np.repeat(honest, 20, axis=0)]) for row in x])
    form, state = form_of(sealed["misinform"], "graph")
    for start in range(0, len(covered), size):
        answers(form, covered[start : start + size])
    (alarm,) = state.alarms()
    own = -(-alarm.row // 21)
    assert alone.row <= own <= alone.row + 2, "the row itself speaks for its caller once"
    form, state = form_of(sealed["misinform"], "graph")
    fresh = images(len(covered), seed=10) * 0 + honest  # control: other rows of which it thinks well are cover
    fresh += np.linspace(0, 1e-3, len(fresh), dtype=np.float32)[:, np.newaxis, np.newaxis, np.newaxis]
    fresh[::21] = x
    answers(form, np.clip(fresh, 0, 1))
    assert not state.alarms()


@pytest.mark.parametrize("kind", ["numpy", "graph"])
def test_what_was_misinformed_before_gets_the_same_answer_after(sealed: dict[str, Sealed], kind: str) -> None:
    form, state = form_of(sealed["misinform"], kind)
    x, probe = images(ROWS), images(24, seed=5)
    calm, minded = answers(form_of(sealed["misinform"], kind)[0], probe, "calm")
    answers(form, x)
    assert state.level("thief") == 1
    after, replaced = answers(form, probe)
    assert replaced.all()
    assert 3 < minded.sum() < 21, "control: some of the probes were misinformed anyway, others not"
    far = (
        Runner(sealed["misinform"].verified()).run({"image": probe}).values.max(axis=1) < 0.58
    )  # above it f is mixed in
    np.testing.assert_array_equal(after[minded & far], calm[minded & far])
    assert not np.isclose(after[~minded], calm[~minded], atol=1e-3).all(axis=1).any()
    again, _ = answers(form, probe)
    np.testing.assert_array_equal(again, after)


@pytest.mark.parametrize("kind", ["numpy", "graph"])
def test_rows_asked_before_the_alarm_keep_their_answers(sealed: dict[str, Sealed], kind: str) -> None:
    form, state = form_of(sealed["misinform"], kind)
    x = images(ROWS)
    first = np.concatenate([answers(form, x[i : i + 4])[0] for i in range(0, ROWS, 4)])
    row = state.alarms()[0].row
    again, replaced = answers(form, x)
    np.testing.assert_allclose(again, first, atol=1e-6)
    assert not replaced[: row - 1].all(), "honest answers are given still"
    forgetful, _ = form_of(sealed["misinform"], kind)
    forgetful_state = next(link.state for link in forgetful._pipeline.links if link.defense.name == "watch")
    assert isinstance(forgetful_state, WatchState)
    forgetful_state._hasher = None
    before = np.concatenate([answers(forgetful, x[i : i + 4])[0] for i in range(0, ROWS, 4)])
    after, _ = answers(forgetful, x)
    assert not np.allclose(after[: row - 1], before[: row - 1], atol=1e-3), "control: without a memory they change"


@pytest.mark.parametrize("kind", ["numpy", "graph"])
def test_nobody_else_is_minded(sealed: dict[str, Sealed], kind: str) -> None:
    form, state = form_of(sealed["misinform"], kind)
    answers(form, images(ROWS))
    probe = images(30, seed=7)
    alone, _ = answers(form_of(sealed["misinform"], kind)[0], probe[:10], "honest")
    together, replaced = answers(form, probe, "honest", "thief", "other")
    np.testing.assert_allclose(together[:10], alone, atol=1e-6)
    assert replaced[10:20].all()
    assert not replaced[:10].all()
    assert {alarm.caller for alarm in state.alarms() if alarm.active} == {"thief"}


@pytest.mark.parametrize("kind", ["numpy", "graph"])
def test_a_reject_option_that_refuses_refuses_the_alarmed(sealed: dict[str, Sealed], kind: str) -> None:
    form, _ = form_of(sealed["refuse"], kind)
    done = form(batch_of(images(ROWS), *(("thief",) * ROWS)))
    assert done is not None
    progress, _ = done
    row = next(a.row for a in form._pipeline.links[4].state.alarms())  # type: ignore[union-attr]
    assert set(progress.refused[row - 1 :]) == {"guard.out_of_distribution"}
    assert None in progress.refused[: row - 1]


@pytest.mark.parametrize("kind", ["numpy", "graph"])
def test_in_shadow_it_counts_and_changes_nothing(sealed: dict[str, Sealed], kind: str) -> None:
    form, state = form_of(sealed["misinform"], kind, shadow=True)
    x = images(ROWS)
    calm, _ = answers(form_of(sealed["misinform"], kind)[0], x, *(f"caller {i}" for i in range(ROWS)))
    done = form(batch_of(x, "thief"))
    assert done is not None
    progress, released = done
    np.testing.assert_allclose(released.outputs["probabilities"], calm, atol=1e-6)
    row = state.alarms()[0].row
    assert progress.shadow["watch"].tolist() == [ROWS - row + 1]


def test_a_host_tightens_a_watch_without_losing_the_graph(sealed: dict[str, Sealed]) -> None:
    model = sealed["misinform"]
    (armed,) = tighten([watch(shadow=True)], {"watch": {"shadow": False}})
    assert not armed.shadow
    service = Service(model.verified(), key=model.key, tightened={"watch": {"action": "refuse"}})
    assert service.guard_form == "graph"
    service.predict({"image": images(ROWS)}, caller="thief")
    with pytest.raises(RefusedError):
        service.predict({"image": images(1)}, caller="thief")
    assert service.predict({"image": images(4)}, caller="honest").outputs["probabilities"].shape == (4, 5)
    alarm = service.first_alarm("thief")
    assert alarm is not None
    assert alarm.action == "refuse"
    assert service.clear_alarm("thief")
    assert not service.clear_alarm("thief")
    service.predict({"image": images(1)}, caller="thief")


def test_a_throttled_caller_is_told_when_to_come_again(sealed: dict[str, Sealed]) -> None:
    model = sealed["misinform"]
    service = Service(model.verified(), key=model.key, tightened={"watch": {"action": "throttle"}})
    (state,) = (link.state for link in service._pipeline.links if link.defense.name == "watch")
    assert isinstance(state, WatchState)
    clock = state.clock = Clock()
    service.predict({"image": images(ROWS)}, caller="thief")
    with pytest.raises(ThrottledError, match=r"40 rows a minute; try again in 60 s"):
        service.predict({"image": images(1)}, caller="thief")
    service.predict({"image": images(ROWS)}, caller="other")
    clock.now += 61
    service.predict({"image": images(40)}, caller="thief")
    with pytest.raises(ThrottledError):
        service.predict({"image": images(1)}, caller="thief")
    clock.now += 5 * 86_400
    for _ in range(3):
        service.predict({"image": images(1)}, caller="thief")


BASE = watch().parameters


@pytest.mark.parametrize(
    "change",
    [
        {"action": "refuse"},
        {"half_life": 1e6},
        {"detectors": {"tiny": {"threshold": 3.0}}},
        {"detectors": {"tiny": {"action": "throttle"}}},
    ],
)
def test_a_host_may_tighten(change: dict[str, Any]) -> None:
    (spec,) = tighten([watch()], {"watch": change})
    assert load_defense(spec) != load_defense(watch())


@pytest.mark.parametrize(
    ("signed", "change"),
    [
        ({}, {"action": "log"}),
        ({}, {"half_life": 60.0}),
        ({}, {"remembered": 64}),
        ({}, {"callers": 5}),
        ({}, {"detectors": {"tiny": {"threshold": 11.0}}}),
        ({}, {"detectors": {"tiny": {"below": 0.1}}}),
        ({}, {"detectors": {"tiny": {"shadow": True}}}),
        ({}, {"detectors": {"tiny": {"action": "log"}}}),
        ({}, {"detectors": {"failing": {"threshold": 1.0}}}),
        ({"action": "refuse"}, {"action": "work"}),
    ],
)
def test_a_host_cannot_loosen(signed: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(GuardError, match="only tighten"):
        tighten([watch(**signed)], {"watch": change})
    with pytest.raises(GuardError, match="not disarm"):
        tighten([watch(**signed)], {"watch": {"shadow": True}})


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"detectors": {"nobody": {"threshold": 1.0}}}, "unknown detector 'nobody'"),
        ({"detectors": {"tiny": {"threshold": 1.0, "bellow": 1}}}, "unknown field `bellow`"),
        ({"detectors": {"tiny": {"threshold": 0.0}}}, "threshold must be above 0"),
        ({"detectors": {"tiny": {"threshold": 1.0, "action": "shout"}}}, "action must be one of"),
        ({"detectors": {}, "action": "shout"}, "action"),
        ({"detectors": {}, "half_life": 0}, "half_life"),
        ({"detectors": {}, "callers": 0}, "callers"),
        ({"detectors": {}, "remembered": 5}, "remembered"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], why: str) -> None:
    with pytest.raises(GuardError, match=why):
        load_defense(DefenseSpec(name="watch", parameters=parameters))


def state_of(**more: Any) -> WatchState:
    defense = load_defense(watch(**more))
    assert isinstance(defense, Watch)
    state = defense.fresh_state(make_facts())
    assert isinstance(state, WatchState)
    state.clock = Clock()
    return state


def ask(state: WatchState, rows: int, *names: str, seed: int = 0, low: bool = True, first: float = 0.0) -> BoolArray:
    """Rows of each caller in turn; of low confidence, which are evidence, or not."""
    x, count = make_inputs(rows * len(names), seed), rows * len(names)
    picture = x[:, :8].copy()
    picture[:, 0] += first
    confidence = np.full(count, 0.1 if low else 0.99, np.float32)
    shown = Rows({"x": x}, picture, confidence, make_scores(count).values)
    found = state.observe(names, np.repeat(np.arange(len(names)), rows), shown)
    return np.zeros(count, dtype=np.bool_) if found is None else found


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
    linking = {"tiny": BASE["detectors"]["tiny"], "linking": {"threshold": 1.0}}
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
    both = {"tiny": BASE["detectors"]["tiny"], "failing": {"threshold": 1.0}}
    with pytest.raises(GuardError, match="the detector failing fails"):
        ask(state_of(detectors=both), 3, "anyone")
    both["failing"] = {"threshold": 1.0, "shadow": True}
    with caplog.at_level(logging.ERROR):
        assert ask(state_of(detectors=both), 20, "thief")[-1]
    assert "fails, in shadow" in caplog.text


def test_a_shadow_detector_rings_and_does_nothing() -> None:
    state = state_of(detectors={"tiny": BASE["detectors"]["tiny"] | {"shadow": True}})
    assert not ask(state, 50, "thief").any()
    (alarm,) = state.alarms()
    assert (alarm.row, alarm.action, alarm.active, state.level("thief")) == (10, "", True, 0)


@pytest.mark.parametrize("shadow", [False, True])
def test_evidence_that_is_not_finite_refuses_but_in_shadow(shadow: bool) -> None:
    both = {"tiny": BASE["detectors"]["tiny"], "unsound": {"threshold": 1.0, "shadow": shadow}}
    state = state_of(detectors=both)
    if shadow:
        assert ask(state, 20, "thief")[-1], "a detector in shadow changes nothing"
        assert [a.detector for a in state.alarms()] == ["tiny"]
    else:
        with pytest.raises(GuardError, match="unsound is not finite"):
            ask(state, 20, "thief")


def test_who_is_alarmed_with_others_alone_is_not_pushed_out_by_newcomers() -> None:
    linking = {"tiny": BASE["detectors"]["tiny"], "linking": {"threshold": 1.0}}
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


def test_who_did_not_fit_into_a_dump_is_forgotten_by_what_detectors_share(monkeypatch: pytest.MonkeyPatch) -> None:
    linking = {"tiny": BASE["detectors"]["tiny"], "linking": {"threshold": 1.0}}
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
    linking = {"tiny": BASE["detectors"]["tiny"], "linking": {"threshold": 1.0}}
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
        "version": b"\x9a\x03" + state.dump()[2:],
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


def test_it_does_not_run_without_its_memory() -> None:
    defense = load_defense(watch())
    assert isinstance(defense, Watch)
    with pytest.raises(GuardError, match="keeps state"):
        defense(View(make_batch(make_inputs(1)), make_facts(), make_scores(1)))


def test_sanctions_want_a_watch(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="works by what watch finds"):
        Pipeline(tuple(s for s in chain(watch()) if s.name != "watch"), make_facts(), bytes(32))
