from __future__ import annotations

import logging
import sys
from typing import Any

import numpy as np
import pytest
from tests.guard.conftest import KEY, make_batch, make_facts, make_inputs, make_scores

from garrison.errors import GuardError
from garrison.guard.base import FEW_ROWS, Marks, RowDefense, Settings, View
from garrison.guard.defenses import DEFENSES
from garrison.guard.defenses.budget import Budget
from garrison.guard.defenses.max_probability import MaxProbability
from garrison.guard.defenses.release import Release
from garrison.guard.failing import DEFENSE_FAILED
from garrison.guard.override import UnsafeGuardOverride
from garrison.guard.pipeline import Pipeline, Progress, tighten
from garrison.types import DefenseSpec, Phase, RawScores, Task

BOUNDS = DefenseSpec(name="bounds")
SCORE = DefenseSpec(name="max-probability")
AM = DefenseSpec(name="adaptive-misinformation", parameters={"tau": 0.9})
RELEASE = DefenseSpec(name="release")


def run(chain: tuple[DefenseSpec, ...], progress: Progress, raw: RawScores) -> dict[str, Any]:
    p = Pipeline(chain, make_facts(), KEY)
    p.admit(progress)
    p.inspect(progress)
    p.answer(progress, raw)
    return dict(p.release(progress).outputs)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ((BOUNDS,), "exactly one RELEASE"),
        ((), "exactly one RELEASE"),
        ((RELEASE, BOUNDS), "ordered ADMIT < INSPECT"),
        ((AM, RELEASE), "signal 'confidence'"),
        ((SCORE, SCORE, RELEASE), "twice"),
        ((DefenseSpec(name="release", shadow=True),), "not in shadow"),
        ((DefenseSpec(name="bonds"), RELEASE), "unknown defense 'bonds'"),
        (
            (BOUNDS, DefenseSpec(name="release", parameters={"mode": "all"})),
            "release.*'all'.*expected one of.*'labels'",
        ),
        ((DefenseSpec(name="release", parameters={"mode": "top-k", "k": 11}),), "release.k is 11"),
        (
            (SCORE, DefenseSpec(name="adaptive-misinformation", parameters={"tau": float("nan")}), RELEASE),
            "tau must be finite",
        ),
    ],
)
def test_a_chain_that_makes_no_sense_cannot_be_built(chain: tuple[DefenseSpec, ...], message: str) -> None:
    with pytest.raises(GuardError, match=message):
        Pipeline(chain, make_facts(), KEY)


def test_misinformation_needs_the_owners_key() -> None:
    with pytest.raises(GuardError, match="misinformation key"):
        Pipeline((SCORE, AM, RELEASE), make_facts(), None)


@pytest.mark.parametrize("task", [Task.REGRESSION, Task.SCORES])
def test_a_model_without_probabilities_is_told_at_building(task: Task) -> None:
    with pytest.raises(GuardError, match="needs a model that answers probabilities"):
        Pipeline((SCORE, RELEASE), make_facts(task), KEY)


def test_one_bad_row_refuses_its_request_and_no_other() -> None:
    x = make_inputs(6)
    x[3, 5] = np.nan
    progress = Progress.begin(make_batch(x, (2, 2, 2)))
    Pipeline((BOUNDS, RELEASE), make_facts()).admit(progress)
    assert progress.refused == [None, "request.input", None]
    rest, requests = progress.admitted()
    assert requests == (0, 2)
    np.testing.assert_array_equal(rest.batch.inputs["x"], x[[0, 1, 4, 5]])
    np.testing.assert_array_equal(rest.batch.request_of_row, [0, 0, 1, 1])


def test_shadow_counts_and_changes_nothing() -> None:
    raw, x = make_scores(8, scale=0.1), make_inputs(8)
    shadow = DefenseSpec(name="adaptive-misinformation", shadow=True, parameters={"tau": 0.9})
    progress = Progress.begin(make_batch(x, (3, 5)))
    out = run((SCORE, shadow, RELEASE), progress, raw)
    np.testing.assert_array_equal(out["probabilities"], raw.values)
    np.testing.assert_array_equal(progress.shadow["adaptive-misinformation"], [3, 5])
    armed = run((SCORE, AM, RELEASE), Progress.begin(make_batch(x, (3, 5))), raw)
    assert not np.allclose(armed["probabilities"], raw.values)


class Fragile(RowDefense, frozen=True):
    """Raises when it sees the value 0.5 in its first feature."""

    name = "fragile"
    phase = Phase.INSPECT

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:
        if (view.batch.inputs["x"][:, 0] == 0.5).any():
            raise RuntimeError("cannot")
        return Marks()


def test_a_defense_that_raises_refuses_only_the_request_at_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(DEFENSES, "fragile", f"{__name__}:Fragile")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Fragile.__module__])
    x = make_inputs(6)
    x[2, 0] = 0.5
    progress = Progress.begin(make_batch(x, (2, 2, 2)))
    with caplog.at_level(logging.CRITICAL):
        Pipeline((DefenseSpec(name="fragile"), RELEASE), make_facts()).inspect(progress)
    assert progress.refused == [None, DEFENSE_FAILED, None]


class BrokenRelease(Release, frozen=True):
    def __call__(self, view: View) -> Any:
        raise RuntimeError("cannot")


def test_a_release_policy_that_raises_releases_nothing() -> None:
    pipeline = Pipeline((RELEASE,), make_facts())
    pipeline._release = BrokenRelease()
    progress = Progress.begin(make_batch(make_inputs(2), (1, 1)))
    pipeline.answer(progress, make_scores(2))
    assert pipeline.release(progress).outputs == {}
    assert progress.refused == [DEFENSE_FAILED, DEFENSE_FAILED]


def test_a_nan_confidence_is_treated_as_out_of_distribution() -> None:
    raw = make_scores(4)
    values = raw.values.copy()
    values[1] = np.nan
    progress = Progress.begin(make_batch(make_inputs(4), (1,) * 4))
    pipeline = Pipeline((SCORE, AM, RELEASE), make_facts(), KEY)
    pipeline.answer(progress, RawScores(values, None, raw.misinformation))
    assert progress.replaced[1]


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"release": {"mode": "labels"}}, True),
        ({"release": {"mode": "rounded", "decimals": 2}}, True),
        ({"adaptive-misinformation": {"tau": 0.95}}, True),
        ({"adaptive-misinformation": {"tau": 0.85}}, False),
        ({"adaptive-misinformation": {"nu": 1.0}}, False),
        ({"adaptive-misinformation": {"shadow": True}}, False),
        ({"budget": {"rows": 5}}, False),
        ({"bounds": {"shadow": False}}, True),
    ],
)
def test_a_host_may_only_tighten(change: dict[str, dict[str, Any]], allowed: bool) -> None:
    signed = (BOUNDS, SCORE, AM, RELEASE)
    if allowed:
        assert tighten(signed, change) != signed or change == {"bounds": {"shadow": False}}
    else:
        with pytest.raises(GuardError):
            tighten(signed, change)


def test_an_override_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert UnsafeGuardOverride((RELEASE,), "a test").use() == (RELEASE,)
    assert "overridden" in caplog.text
    assert "a test" in caplog.text


def test_only_what_looks_at_callers_glances_at_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    glanced: list[str] = []
    for kind in (Budget, MaxProbability):

        def glance(self: RowDefense, view: View, settings: Settings, plain: Any = kind.glance) -> Any:
            glanced.append(self.name)
            return plain(self, view, settings)

        monkeypatch.setattr(kind, "glance", glance)
    pipeline = Pipeline((DefenseSpec(name="budget", parameters={"rows": 100}), SCORE, RELEASE), make_facts(), KEY)
    for rows, expected in ((FEW_ROWS, ["budget", "max-probability"]), (FEW_ROWS + 1, ["budget"])):
        glanced.clear()
        progress = Progress.begin(make_batch(make_inputs(rows), remaining=rows))
        pipeline.admit(progress)
        pipeline.answer(progress, make_scores(rows))
        assert glanced == expected
        assert not any(progress.refused)
        asked_much = Progress.begin(make_batch(make_inputs(rows), remaining=rows - 1))
        pipeline.admit(asked_much)
        assert asked_much.refused == [Budget.reason]
