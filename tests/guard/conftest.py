"""Real facts, batches and scores for the guard's tests."""

from __future__ import annotations

import numpy as np
import pytest

from garrison.guard.base import Noise, View
from garrison.guard.keyed import PICKS
from garrison.types import Array, Batch, Caller, FloatArray, InputFacts, ModelFacts, RawScores, Task

CLASSES, FEATURES = 10, 12
KEY = bytes(range(32))
PLAIN_CODES = [[0.5 + 0.5 / CLASSES if i == k else 0.5 / CLASSES for i in range(CLASSES)] for k in range(CLASSES)]
"""A codebook with one code a class."""


def make_facts(task: Task = Task.CLASSIFICATION, *, outputs: int = CLASSES, missing: bool = False) -> ModelFacts:
    spec = InputFacts(
        name="x",
        dtype=np.dtype(np.float32),
        shape=(FEATURES,),
        low=np.zeros(FEATURES, np.float32),
        high=np.ones(FEATURES, np.float32),
        may_be_missing=np.full(FEATURES, missing),
    )
    labels = () if task is Task.REGRESSION else tuple(f"class {k}" for k in range(outputs))
    return ModelFacts(task, (spec,), labels, outputs, np.dtype(np.float32), has_logits=True, has_misinformation=True)


def make_batch(x: Array, rows_of_request: tuple[int, ...] | None = None, remaining: int = -1) -> Batch:
    counts = rows_of_request or (len(x),)
    callers = tuple(Caller(f"caller {i}") for i in range(len(counts)))
    return Batch(
        {"x": x}, np.repeat(np.arange(len(counts), dtype=np.intp), counts), callers, (remaining,) * len(counts)
    )


def softmax(z: FloatArray) -> FloatArray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    out: FloatArray = e / e.sum(axis=1, keepdims=True)
    return out


def make_scores(rows: int, seed: int = 0, scale: float = 4.0) -> RawScores:
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(rows, CLASSES))).astype(np.float32)
    wrong = np.log(softmax(rng.normal(size=(rows, CLASSES)))).astype(np.float32)
    features = -rng.random((rows, 1)).astype(np.float32)
    copies = softmax((logits + rng.normal(size=(2, rows, CLASSES))).reshape(-1, CLASSES)).reshape(2, rows, CLASSES)
    squeezed = np.concatenate([*copies], axis=1).astype(np.float32)
    return RawScores(softmax(logits), logits, lambda index: wrong[index], features, squeezed, again)


def again(inputs: dict[str, Array]) -> FloatArray:
    """A linear model's answers to any rows."""
    weights = np.random.default_rng(3).normal(size=(FEATURES, CLASSES))
    return softmax(4.0 * inputs["x"] @ weights).astype(np.float32)


def make_inputs(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((rows, FEATURES), dtype=np.float32)


@pytest.fixture
def facts() -> ModelFacts:
    return make_facts()


def make_view(facts: ModelFacts, rows: int, *, confidence: FloatArray | None = None) -> View:
    raw = make_scores(rows)
    signal = raw.values.max(axis=1) if confidence is None else confidence
    rng = np.random.default_rng(5)
    table = 0.1 + rng.random((PICKS * rows, 2 * CLASSES), dtype=np.float32)
    table[:, -1] *= 1e-7
    noise = [Noise(table, tuple(range(PICKS * i, PICKS * i + PICKS)), rng.random()) for i in range(rows)]
    return View(
        make_batch(make_inputs(rows)),
        facts,
        raw,
        raw.values,
        np.zeros(rows, dtype=np.bool_),
        {"confidence": signal},
        lambda index: [noise[i] for i in np.arange(rows)[index]],
    )
