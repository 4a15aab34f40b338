"""A small table model, its reference, and streams of rows from several callers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from garrison.guard.drifting.columns import features_of
from garrison.guard.drifting.state import DriftState
from garrison.hardening.drift import Fitted, fit_drift
from garrison.types import Array, FloatArray, InputFacts, ModelFacts, Task

FEATURES, CLASSES = 6, 3


def facts(features: int = FEATURES) -> ModelFacts:
    spec = InputFacts(
        name="x",
        dtype=np.dtype(np.float32),
        shape=(features,),
        low=np.full(features, -9, np.float32),
        high=np.full(features, 9, np.float32),
        may_be_missing=np.ones(features, dtype=np.bool_),
    )
    labels = tuple(f"class {k}" for k in range(CLASSES))
    return ModelFacts(
        Task.CLASSIFICATION, (spec,), labels, CLASSES, np.dtype(np.float32), has_logits=False, has_misinformation=False
    )


def rows(count: int, seed: int) -> FloatArray:
    """Normal, skewed and whole numbers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, FEATURES)).astype(np.float32)
    x[:, 1] = np.minimum(np.abs(x[:, 1]) ** 2, 9)
    x[:, 2] = rng.poisson(1.0, count).clip(0, 9)
    return x


def answers(x: FloatArray) -> FloatArray:
    z = np.nan_to_num(x) @ np.random.default_rng(9).normal(size=(x.shape[1], CLASSES))
    e = np.exp(z - z.max(axis=1, keepdims=True))
    found: FloatArray = (e / e.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


@lru_cache(maxsize=1)
def fitted() -> Fitted:
    x = rows(4_000, seed=1)
    return fit_drift(facts(), {"x": x}, answers(x))


def fresh() -> DriftState:
    state = fitted().drift.fresh_state(facts())
    assert isinstance(state, DriftState)
    state.clock = lambda: 1_000.0
    return state


def ask(state: DriftState, x: FloatArray, names: list[str]) -> None:
    """Rows of several callers in turn, one a request."""
    assert features_of(facts()) == x.shape[1]
    y = answers(x)
    for start in range(0, len(x), len(names)):
        part = slice(start, start + len(names))
        request: Array = np.arange(len(x[part]))
        state.observe(names[: len(request)], request, {"x": x[part]}, None, y[part])


def until_alarm(
    state: DriftState, callers: int, batches: int, change: Callable[[FloatArray, int], None], seed: int = 3
) -> int:
    """Batches of one row a caller; how many came until the first alarm, -1 for none."""
    x = rows(callers * batches, seed)
    names = [f"caller {k}" for k in range(callers)]
    for k in range(batches):
        part = x[callers * k : callers * (k + 1)]
        change(part, k)
        state.observe(names, np.arange(callers), {"x": part}, None, answers(part))
        if state.alarms:
            return k + 1
    return -1
