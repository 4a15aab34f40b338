"""What is missing is left out and named."""

from __future__ import annotations

from pathlib import Path

from tests.audit.worlds import World, build

from garrison.audit.arms import choose_arms, notes
from garrison.audit.targets import TargetName, guarded

U, E, D = TargetName.UNDEFENDED, TargetName.EXPOSURE, TargetName.DEFENDED


def test_all_three_arms(world: World) -> None:
    served, plain = world.opened(world.bundle), world.opened(world.plain)
    arms = choose_arms(guarded(served, world.key), reference=served, baseline=plain, key=world.key)
    assert list(arms.targets()) == [U, E, D]
    assert arms.f is arms.undefended
    assert arms.exposure is arms.reference
    assert "outlier exposure" in notes(arms)[E]


def test_without_a_plain_model_there_is_no_undefended_arm(world: World) -> None:
    served = world.opened(world.bundle)
    arms = choose_arms(guarded(served, world.key), reference=served)
    assert list(arms.targets()) == [E, D]
    assert arms.f is arms.reference


def test_a_model_without_outlier_exposure_is_its_own_undefended_arm(tmp_path: Path) -> None:
    world = build(tmp_path, exposed=False)
    served = world.opened(world.bundle)
    arms = choose_arms(guarded(served, world.key), reference=served)
    assert list(arms.targets()) == [U, D]
    assert arms.undefended is arms.reference is arms.f
    assert arms.exposure is None
    assert "taken off" in notes(arms)[U]


def test_a_bare_service_has_no_reference(world: World) -> None:
    arms = choose_arms(guarded(world.opened(world.bundle), world.key))
    assert list(arms.targets()) == [D]
    assert arms.f is None
