"""A watch alone, without a model, and callers who ask it."""

from __future__ import annotations

from typing import Any

import numpy as np
from tests.guard.conftest import make_facts, make_inputs, make_scores
from tests.guard.detectors.chains import Clock, watch

from garrison.guard.defenses.watch import Watch
from garrison.guard.pipeline import load_defense
from garrison.guard.watching.state import Rows, WatchState
from garrison.types import BoolArray

TINY = watch().parameters["detectors"]["tiny"]
"""Parameters of the detector `tiny`."""


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
