"""The defense around the sketch: what it takes, what a host may change, and that refused rows do not count."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from tests.guard.drifting import streams

from garrison.errors import GuardError
from garrison.guard.base import View
from garrison.guard.defenses.drift import Drift
from garrison.guard.drifting.state import DriftState
from garrison.guard.pipeline import load_defense
from garrison.types import Batch, Caller, DefenseSpec, RawScores, Released

DRIFT = streams.fitted().drift


def test_it_goes_through_a_manifest() -> None:
    built = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(DRIFT)))
    assert load_defense(DefenseSpec(name="drift", parameters=built)) == DRIFT


def test_a_host_may_lower_thresholds_and_nothing_else() -> None:
    lower = {kind: value / 2 for kind, value in DRIFT.thresholds.items()}
    msgspec.structs.replace(DRIFT, thresholds=lower).check_tightened(DRIFT)
    for change in ({"thresholds": {**lower, "psi": 9.0}}, {"half_life": 4_000.0}, {"columns": DRIFT.columns[:-1]}):
        with pytest.raises(GuardError, match="may only tighten"):
            msgspec.structs.replace(DRIFT, **change).check_tightened(DRIFT)


def test_a_reference_of_another_model_is_refused() -> None:
    with pytest.raises(GuardError, match="other columns"):
        DRIFT.check(streams.facts(5))
    with pytest.raises(GuardError, match="thresholds"):
        load_defense(DefenseSpec(name="drift", parameters=msgspec.to_builtins(DRIFT) | {"thresholds": {"psi": 1.0}}))


def test_refused_rows_are_not_counted() -> None:
    state = DRIFT.fresh_state(streams.facts())
    assert isinstance(state, DriftState)
    x = streams.rows(4, seed=2)
    batch = Batch({"x": x}, np.array([0, 0, 1, 1]), (Caller("ann"), Caller("bob")), (-1, -1))
    view = View(batch, streams.facts(), raw=RawScores(streams.answers(x)), refused=(False, True), state=state)
    DRIFT(view, Released({}))
    assert state.shares_of("ann") is not None
    assert state.shares_of("bob") is None
    DRIFT(msgspec.structs.replace(view, refused=(True, True)), Released({}))
    assert state.sketch.rows == 2
    DRIFT(msgspec.structs.replace(view, raw=None), Released({}))
    assert Drift.looks_at_scores
