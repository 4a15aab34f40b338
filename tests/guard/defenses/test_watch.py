"""An alarm changes what a caller is answered, in both forms alike, from the very row on; nobody else's answers, and none that the caller had before."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from msgspec import structs
from tests.guard.detectors.chains import REJECT, Clock, chain, know, watch
from tests.models import Sealed, images, seal_mlp

from garrison.crypto.owner import OwnerKey
from garrison.enclave.service import Service
from garrison.errors import RefusedError, ThrottledError
from garrison.guard.graph_form import GraphForm, fits, settings_of
from garrison.guard.numpy_form import NumpyForm
from garrison.guard.pipeline import Pipeline, tighten
from garrison.guard.watching.state import WatchState
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
