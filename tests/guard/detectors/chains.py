"""Chains with `watch` in them, and a clock that a test turns."""

from __future__ import annotations

from typing import Any

import pytest
from tests.guard.detectors.tiny import REGISTRY
from tests.models import BOUNDS, RELEASE, SCORE, misinform

from garrison.guard.detectors import DETECTORS
from garrison.types import DefenseSpec

PROJECTION = DefenseSpec(name="projection", parameters={"width": 8})
SANCTIONS = DefenseSpec(name="sanctions", parameters={"rows_a_minute": 40})
REJECT = DefenseSpec(name="reject-option", parameters={"tau": 0.6})


class Clock:
    """Seconds, as they are set."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the tests' detectors into the registry."""
    for name, place in REGISTRY.items():
        monkeypatch.setitem(DETECTORS, name, place)


def watch(shadow: bool = False, threshold: float = 10.0, **more: Any) -> DefenseSpec:
    """With the detector `tiny`: 1 nat for a row of confidence below 0.9."""
    tiny = {"threshold": threshold, "below": 0.9}
    return DefenseSpec(name="watch", shadow=shadow, parameters={"detectors": {"tiny": tiny}, "remembered": 256} | more)


def chain(watching: DefenseSpec, answer: DefenseSpec | None = None, *more: DefenseSpec) -> tuple[DefenseSpec, ...]:
    """Bounds, sanctions, projection, score, `watching`, misinformation, release."""
    rest = misinform(0.6) if answer is None else answer
    return (BOUNDS, SANCTIONS, PROJECTION, SCORE, watching, rest, RELEASE, *more)


def watch_for_strangers(**more: Any) -> DefenseSpec:
    """With the registered detector `ood-rate`: 1 nat for a row of confidence below 0.9; rings at 10."""
    strangers = {"threshold": 10.0, "edges": [0.9], "nats": [1.0, -0.25]}
    return DefenseSpec(name="watch", parameters={"detectors": {"ood-rate": strangers}, "remembered": 256} | more)
