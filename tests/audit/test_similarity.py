"""The sweep runs the guard's own pipeline: at its ends, and at the signed tau, the answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.audit.worlds import GUARD, TAU, World, sealed
from tests.models import BOUNDS, RELEASE, misinform

from garrison.audit.similarity import left_alone, signed_tau, similarity_curves
from garrison.audit.targets import guarded, unguarded
from garrison.types import DefenseSpec


def test_at_zero_nothing_changes_and_above_one_everything_does(world: World) -> None:
    own = unguarded(world.opened(world.bundle))
    points = similarity_curves(own, {"in-distribution": world.data.test.x}, None, taus=(0.0, 1.1))
    by_tau = {p.tau: p.value for p in points if p.misinformation}
    assert by_tau[0.0] == 1.0
    assert 0.0 < by_tau[1.1] < 0.4  # misinformation names f's own choice of five classes as often as chance
    (without,) = [p for p in points if not p.misinformation]
    assert (without.tau, without.value) == (None, 1.0)
    assert {p.against for p in points} == {"unguarded"}


def test_the_sweep_at_the_signed_tau_is_what_is_served(world: World) -> None:
    bundle = world.opened(world.bundle)
    own, defended, plain = unguarded(bundle), guarded(bundle, world.key), unguarded(world.opened(world.plain))
    x = world.data.surrogate.x
    points = similarity_curves(own, {"out-of-distribution": x}, plain.raw, key=world.key)
    marked = {p.against: p for p in points if p.calibrated}
    served = defended.query(x).labels
    assert {p.tau for p in marked.values()} == {TAU}
    assert marked["unguarded"].value == pytest.approx((served == own.raw(x).argmax(axis=1)).mean())
    assert marked["undefended"].value == pytest.approx((served == plain.raw(x).argmax(axis=1)).mean())
    assert marked["unguarded"].low <= marked["unguarded"].value <= marked["unguarded"].high
    assert len({p.tau for p in points if p.misinformation}) >= 21


def test_similarity_falls_as_tau_rises(world: World) -> None:
    own = unguarded(world.opened(world.bundle))
    points = similarity_curves(own, {"in-distribution": world.data.test.x}, None)
    values = [p.value for p in sorted((p for p in points if p.misinformation), key=lambda p: p.tau or 0.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


def test_another_score_has_another_range(world: World, tmp_path: Path) -> None:
    energy = DefenseSpec(name="energy")
    path = sealed(tmp_path / "b", world.owner, (BOUNDS, energy, misinform(3.0), RELEASE))
    own = unguarded(world.opened(path))
    points = similarity_curves(own, {"in-distribution": world.data.test.x}, None)
    taus = [p.tau for p in points if p.tau is not None]
    assert max(taus) > 1.0
    assert {round(p.value, 2) for p in points if p.tau in {min(taus), max(taus)}} >= {1.0}


def test_without_misinformation_there_is_no_figure(world: World) -> None:
    own = unguarded(world.opened(world.plain))
    assert similarity_curves(own, {"in-distribution": world.data.test.x}, None) == ()
    assert signed_tau(GUARD) == TAU
    assert signed_tau((RELEASE,)) is None


@pytest.mark.parametrize("action", ["refuse", "uncertain"])
def test_rows_left_alone_by_every_kind_of_guard(world: World, tmp_path: Path, action: str) -> None:
    reject = DefenseSpec(name="reject-option", parameters={"tau": 0.5, "action": action})
    path = sealed(tmp_path / "b", world.owner, (BOUNDS, DefenseSpec(name="max-probability"), reject, RELEASE))
    own = unguarded(world.opened(path))
    x = world.data.test.x
    assert np.array_equal(left_alone(own, x), own.raw(x).max(axis=1) >= 0.5)
