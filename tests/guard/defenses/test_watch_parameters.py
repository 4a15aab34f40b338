"""What a host may change of a watch, and what parameters it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.guard.conftest import make_batch, make_facts, make_inputs, make_scores
from tests.guard.detectors.chains import chain, know, watch

from garrison.errors import GuardError
from garrison.guard.base import View
from garrison.guard.defenses.watch import Watch
from garrison.guard.pipeline import Pipeline, load_defense, tighten
from garrison.types import DefenseSpec


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch)


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


def test_it_does_not_run_without_its_memory() -> None:
    defense = load_defense(watch())
    assert isinstance(defense, Watch)
    with pytest.raises(GuardError, match="keeps state"):
        defense(View(make_batch(make_inputs(1)), make_facts(), make_scores(1)))


def test_sanctions_want_a_watch(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="works by what watch finds"):
        Pipeline(tuple(s for s in chain(watch()) if s.name != "watch"), make_facts(), bytes(32))
