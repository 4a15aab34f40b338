"""What a defense sees at a glance is what it judges."""

from __future__ import annotations

import importlib

import msgspec
import numpy as np
import pytest
from tests.guard.detectors.tiny import Tiny

from garrison.guard.base import FEW_ROWS, KEEP, REFUSE, RowDefense, View
from garrison.guard.defenses import DEFENSES
from garrison.guard.defenses.adaptive_misinformation import AdaptiveMisinformation
from garrison.guard.defenses.bounds import Bounds
from garrison.guard.defenses.budget import Budget
from garrison.guard.defenses.deceptive_misinformation import DeceptiveMisinformation
from garrison.guard.defenses.label_preserving_misinformation import LabelPreservingMisinformation
from garrison.guard.defenses.max_probability import MaxProbability
from garrison.guard.defenses.sanctions import Sanctions
from garrison.guard.watching.book import REFUSE as REFUSED
from garrison.guard.watching.book import Armed
from garrison.guard.watching.remembered import Settings as WatchSettings
from garrison.guard.watching.state import Rows, WatchState
from garrison.types import Array, Batch, Caller, FloatArray, InputFacts, ModelFacts, RawScores, Task

CLASSES, FEATURES = 4, 6
TAU = 0.6
GLANCING: tuple[RowDefense, ...] = (
    Bounds(),
    Budget(rows=10),
    Budget(rows=10, distinct=4),
    MaxProbability(),
    AdaptiveMisinformation(tau=TAU),
    AdaptiveMisinformation(tau=TAU, constant_time=True),
    DeceptiveMisinformation(tau=TAU),
    LabelPreservingMisinformation(tau=TAU),
    Sanctions(),
)
ODD = (0.0, 1.0, -0.0, 0.5, np.nan, np.inf, -np.inf, -1e-7, float(np.nextafter(np.float32(1), np.float32(2))))


def facts(*, missing: bool) -> ModelFacts:
    low, high = np.zeros(FEATURES, np.float32), np.ones(FEATURES, np.float32)
    may = np.zeros(FEATURES, np.bool_)
    may[1] = missing
    spec = InputFacts("x", np.dtype(np.float32), (2, 3), low, high, may)
    return ModelFacts(Task.CLASSIFICATION, (spec,), (), CLASSES, np.dtype(np.float32), False, True)


def view_of(x: Array, values: FloatArray, confidence: FloatArray, left: int, known: ModelFacts) -> View:
    rows = len(x)
    batch = Batch({"x": x}, np.zeros(rows, dtype=np.intp), (Caller("a"),), (left,), (left,))
    return View(batch, known, RawScores(values), values, np.zeros(rows, np.bool_), {"confidence": confidence})


def agree(defense: RowDefense, view: View) -> bool:
    """Whether the defense glanced; fails where it saw something else than it judges."""
    seen = defense.glance(view, defense.settings(view.facts))
    if seen is None:
        return False
    found = super(Bounds, defense).__call__(view) if isinstance(defense, Bounds) else defense(view)
    assert (found.codes == KEEP).all(), defense
    assert seen.keys() == found.signals.keys()
    for name, signal in seen.items():
        np.testing.assert_array_equal(signal, found.signals[name])
    return True


def test_every_defense_of_the_registry_that_glances_is_tried_here() -> None:
    kinds = set()
    for place in DEFENSES.values():
        module, _, attribute = place.partition(":")
        kind = getattr(importlib.import_module(module), attribute)
        if issubclass(kind, RowDefense) and kind.glance is not RowDefense.glance:
            kinds.add(kind)
    assert kinds == {type(defense) for defense in GLANCING}


@pytest.mark.parametrize("defense", GLANCING, ids=lambda d: d.name)
@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS])
def test_a_glance_sees_what_is_judged(defense: RowDefense, rows: int) -> None:
    rng, glanced = np.random.default_rng(rows), 0
    sure = defense.settings(facts(missing=False)).get("sure", np.float32(TAU))
    edges = [np.float32(sure), np.nextafter(np.float32(sure), np.float32(2)), np.float32(np.nan), np.float32(0.99)]
    for number in range(200):
        x = rng.random((rows, 2, 3), dtype=np.float32)
        if number % 3 == 0:
            x.reshape(-1)[rng.integers(x.size)] = rng.choice(ODD)
        values = rng.dirichlet(np.ones(CLASSES), rows).astype(np.float32)
        if number % 5 == 0:
            values[rng.integers(rows)] = np.nan
        if number % 5 == 1:  # behind another number, where Python's own maximum passes over it
            values.reshape(-1)[rng.integers(values.size)] = np.nan
        confidence = rng.uniform(0.55, 1.0, rows).astype(np.float32)
        confidence[rng.integers(rows)] = edges[number % len(edges)]
        left = int(rng.integers(-1, 2 * rows))
        glanced += agree(defense, view_of(x, values, confidence, left, facts(missing=number % 2 == 0)))
    never = getattr(defense, "distinct", 0) or getattr(defense, "constant_time", False)
    assert (glanced == 0) == bool(never), glanced  # the comparison above has been made


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("place", range(FEATURES))
def test_bounds_sees_no_odd_value_as_good_at_any_position(value: float, place: int) -> None:
    x = np.full((1, FEATURES), 0.5, np.float32)
    x[0, place] = value
    seen = Bounds().glance(
        view_of(x.reshape(1, 2, 3), np.zeros((1, CLASSES), np.float32), np.zeros(1), 1, facts(missing=True)), {}
    )
    assert (seen is not None) == (0 <= np.float32(value) <= 1)


def test_sanctions_glances_as_long_as_nobody_is_alarmed() -> None:
    armed = Armed("tiny", Tiny(threshold=2.0), REFUSED, shadow=False)
    state = WatchState(WatchSettings((armed,), 3600.0, 64, 0), facts(missing=False))
    x, values = np.zeros((1, 2, 3), np.float32), np.full((1, CLASSES), 1 / CLASSES, np.float32)
    view = msgspec.structs.replace(view_of(x, values, np.zeros(1), 9, facts(missing=False)), state=state)
    for strange, glanced in ((False, True), (True, True), (True, False)):
        state.observe(["a"], np.zeros(1, np.intp), Rows({}, values, np.full(1, 0.1 if strange else 0.9), values))
        state.settle()
        assert agree(Sanctions(), view) == glanced
    assert Sanctions()(view).codes.tolist() == [REFUSE]
