"""What an owner chooses of `watch` when a model is sealed."""

from __future__ import annotations

import pytest
from tests.guard.detectors.chains import PROJECTION, REJECT, watch_for_strangers
from tests.models import BOUNDS, RELEASE, SCORE, misinform

from garrison.errors import GuardError
from garrison.guard.pipeline import load_defense
from garrison.sealing.chain import edit_chain
from garrison.sealing.options import SealOptions
from garrison.types import DefenseSpec

SHADOW = DefenseSpec(name="watch", shadow=True, parameters=watch_for_strangers().parameters)
HARDENED = (BOUNDS, PROJECTION, SCORE, SHADOW, misinform(0.6), RELEASE)
ORDER = ["bounds", "sanctions", "projection", "max-probability", "watch", "adaptive-misinformation", "release"]


def sealed(chain: tuple[DefenseSpec, ...] = HARDENED, **options: object) -> dict[str, DefenseSpec]:
    specs = edit_chain(chain, SealOptions(name="m", **options))  # type: ignore[arg-type]
    return {spec.name: spec for spec in specs}


def test_as_hardened_it_runs_in_shadow_and_a_host_can_arm_it_strictly() -> None:
    chain = sealed()
    assert list(chain) == ORDER
    assert chain["watch"].shadow
    assert load_defense(chain["watch"]) == load_defense(SHADOW)
    assert "sanctions" not in sealed((BOUNDS, SCORE, misinform(0.6), RELEASE)), (
        "control: without a watch there are none"
    )


def test_an_owner_arms_it_by_choosing_an_action() -> None:
    chain = sealed(watch_action="throttle")
    assert not chain["watch"].shadow
    assert chain["watch"].parameters["action"] == "throttle"
    assert chain["watch"].parameters["detectors"].keys() == {"ood-rate"}
    assert "proof-of-work" not in chain
    assert sealed(watch_action="work")["proof-of-work"].parameters["who"] == "alarmed"
    kept = sealed(watch_action="refuse", shadow=frozenset({"watch"}))["watch"]
    assert (kept.shadow, kept.parameters["action"]) == (True, "refuse")
    armed = sealed(arm=frozenset({"watch"}))["watch"]
    assert (armed.shadow, armed.parameters["action"]) == (False, "misinform")


def test_an_action_that_could_do_nothing_is_refused() -> None:
    bare = tuple(spec for spec in HARDENED if spec.name != "adaptive-misinformation")
    with pytest.raises(GuardError, match="would do nothing"):
        sealed(bare, watch_action="misinform")
    with pytest.raises(GuardError, match="would do nothing"):
        sealed(bare, arm=frozenset({"watch"}))
    assert not sealed(bare, watch_action="throttle")["watch"].shadow
    assert not sealed((*bare[:-1], REJECT, RELEASE), watch_action="misinform")["watch"].shadow
    with pytest.raises(GuardError, match="has no watch"):
        sealed((BOUNDS, SCORE, RELEASE), watch_action="refuse")


def test_choosing_other_defenses_keeps_the_watch_after_its_score() -> None:
    chain = sealed(defenses=("deceptive-misinformation",))
    assert list(chain) == [*ORDER[:-2], "deceptive-misinformation", "release"]
    chain = sealed(defenses=("watch:half_life=3600",))
    assert list(chain) == ORDER
    assert chain["watch"].parameters["half_life"] == 3600
