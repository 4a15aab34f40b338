from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.guard.conftest import make_facts

from garrison.errors import CalibrationError
from garrison.guard.defenses.adaptive_misinformation import AdaptiveMisinformation
from garrison.guard.keyed import KeyedTable
from garrison.hardening.calibration import answer_shape, calibrate, changed, confidence_of, lead_of, rows_needed
from garrison.types import Array


def rows(n: int, seed: int = 0, classes: int = 6) -> tuple[Array, Array, Array]:
    """(probabilities, logits, y) of a model that is right as often as it is sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * rng.uniform(0.5, 5, (n, 1))
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    y = (rng.random(n)[:, None] > p.cumsum(axis=1)).sum(axis=1)
    return p.astype(np.float32), logits.astype(np.float32), np.minimum(y, classes - 1)


@pytest.mark.parametrize("score", ["max-probability", "energy"])
@pytest.mark.parametrize("asked", [0.005, 0.02])
def test_the_loss_is_within_what_was_asked_and_tau_is_the_largest_such(score: Any, asked: float) -> None:
    p, z, y = rows(4000)
    confidence = confidence_of(score, p, z)
    found = calibrate(p, confidence, y, benign_loss=asked)
    assert found.holds
    assert found.loss_low <= found.loss <= found.loss_high <= asked
    right = p.argmax(axis=1) == y
    more = (right & changed(confidence, lead_of(p), found.tau + 0.01 * (1 + abs(found.tau)), 1000.0)).mean()
    assert more > found.loss


def test_the_guard_itself_loses_no_more() -> None:
    p, _, y = rows(3000)
    found = calibrate(p, confidence_of("max-probability", p), y)
    defense, facts = AdaptiveMisinformation(tau=found.tau, margins=(19.0, 21.0)), make_facts(outputs=p.shape[1])
    noise = KeyedTable(bytes(32), "", defense.noise_drawer(facts))({"x": p}, slice(None))
    wrong, f = np.full(p.shape, -np.log(p.shape[1])), p.astype(np.float64)
    served = defense.redraw_rows(f, wrong, {"confidence": f.max(axis=1)}, noise).argmax(axis=1)
    lost = ((p.argmax(axis=1) == y) & (served != y)).mean()
    assert 0 < lost <= found.loss


def test_the_promise_holds_on_new_rows_and_a_tau_without_the_limit_breaks_it() -> None:
    p, _, y = rows(200_000)
    confidence, right = confidence_of("max-probability", p), p.argmax(axis=1) == y
    kept, naive, trials = 0, 0, 60
    for trial in range(trials):
        index = np.random.default_rng(trial).integers(0, len(p), 1500)
        tau = calibrate(p[index], confidence[index], y[index], benign_loss=0.01).tau
        kept += (right & (confidence < tau)).mean() <= 0.01
        ordered = np.sort(confidence[index][right[index]])
        naive += (right & (confidence < ordered[15])).mean() <= 0.01
    assert kept >= 0.9 * trials
    assert naive <= 0.75 * trials


def test_without_labels_every_changed_answer_counts() -> None:
    p, _, y = rows(4000)
    confidence = confidence_of("max-probability", p)
    blind, seeing = calibrate(p, confidence), calibrate(p, confidence, y)
    assert not blind.labelled
    assert math.isnan(blind.accuracy)
    assert blind.tau < seeing.tau
    assert (confidence < blind.tau).mean() <= 0.005


def test_too_few_rows_promise_nothing_and_say_so() -> None:
    p, _, y = rows(200)
    found = calibrate(p, confidence_of("max-probability", p), y)
    assert not found.holds
    assert found.loss == 0.0
    assert found.loss_high > 0.005
    assert rows_needed(0.005) == 598
    p, _, y = rows(598)
    assert calibrate(p, confidence_of("max-probability", p), y).holds


def test_the_shape_of_answers_is_that_of_the_rows() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    tail, margins = answer_shape(p)
    assert tail == pytest.approx((math.log(2) / 2 + math.log(3) / 2) / 2, abs=1e-3)
    assert len(margins) == 32
    assert list(margins) == sorted(margins)
    assert min(margins) >= round(math.log(2), 3)
    assert max(margins) <= round(math.log(3.5), 3)
    assert answer_shape(np.eye(4))[1][0] > 0  # certain answers stay finite


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"p": np.zeros((0, 3))}, "at least 100"),
        ({"p": np.full((99, 3), 1 / 3)}, "at least 100"),
        ({"p": np.full((200, 3), np.nan)}, "NaN"),
        ({"p": np.full((200, 3), 0.9)}, "no probabilities"),
        ({"p": np.ones((200, 1))}, "expected probabilities"),
        ({"y": np.full(200, 3)}, "0 to 2"),
        ({"y": np.full(200, -1)}, "0 to 2"),
        ({"y": np.zeros(100, dtype=np.int64)}, "whole class numbers"),
        ({"y": np.zeros(200)}, "whole class numbers"),
        ({"y": np.full(200, 2)}, "wrong on every"),
        ({"loss": 0.0}, "between 0 and 1"),
        ({"loss": 1.0}, "between 0 and 1"),
        ({"loss": math.nan}, "between 0 and 1"),
    ],
)
def test_bad_rows(change: dict[str, Any], message: str) -> None:
    p = change.get("p", np.tile([0.6, 0.3, 0.1], (200, 1)))
    y = change.get("y", np.zeros(len(p), dtype=np.int64))
    confidence = p.max(axis=1) if len(p) else np.zeros(0)
    with pytest.raises(CalibrationError, match=message):
        calibrate(p, confidence, y, benign_loss=change.get("loss", 0.005))


def test_energy_needs_logits() -> None:
    with pytest.raises(CalibrationError, match="energy"):
        confidence_of("energy", np.full((3, 3), 1 / 3))
