"""Every registered defense that makes or releases answers can be an arm of a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.audit.worlds import World
from tests.guard.test_contract import EXAMPLES
from tests.models import CLASSES

from garrison.attacks.oracle import MeteredOracle
from garrison.audit.arms import choose_arms
from garrison.audit.grid import ArmPlan, defense_of
from garrison.audit.targets import guarded
from garrison.guard.base import ReleaseDefense
from garrison.guard.defenses import DEFENSES
from garrison.types import DefenseSpec, Phase

FITTING: dict[str, dict[str, Any]] = {"modelguard-s": {"codes": (0.4 * np.eye(CLASSES) + 0.6 / CLASSES).tolist()}}
"""Parameters that depend on how many classes there are."""


def answer_defenses() -> list[tuple[str, dict[str, Any]]]:
    kinds = {name: defense_of(name) for name in DEFENSES}
    mine = [n for n, kind in kinds.items() if kind.phase in {Phase.ANSWER, Phase.RELEASE} and not kind.gives]
    return [(name, FITTING.get(name, EXAMPLES[name][-1])) for name in mine]


@pytest.mark.parametrize(("name", "parameters"), answer_defenses(), ids=lambda x: x if isinstance(x, str) else "")
def test_every_answer_defense_can_be_an_arm(world: World, name: str, parameters: dict[str, Any]) -> None:
    bundle = world.opened(world.bundle)
    keep = ("bounds", "max-probability", "energy")
    release = () if issubclass(defense_of(name), ReleaseDefense) else (DefenseSpec(name="release"),)
    replaces = (DefenseSpec(name="projection"), *release, DefenseSpec(name=name, parameters=parameters))
    plan = ArmPlan(name=f"with {name}", keep=keep, replaces=replaces)
    arms = choose_arms(guarded(bundle, world.key), reference=bundle, key=world.key, plans=(plan,))
    assert plan.name not in arms.missing, arms.missing
    target = arms.others[plan.name]
    answers = MeteredOracle(target, 40).query(world.data.test.x[:20])
    assert answers.usable.any() or name == "reject-option"
    assert name in [spec.name for spec in target.identity.chain or ()]
