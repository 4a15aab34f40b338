"""Stricter release policies by caller: never more than the chain's, and what that policy would have said itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.guard.conftest import make_facts, make_scores

from garrison.errors import GuardError
from garrison.guard.caller_release import CallerReleases
from garrison.guard.defenses.release import Release
from garrison.types import Released, Task

BASES = [
    Release(),
    Release(mode="rounded", decimals=3),
    Release(mode="top-k", k=4),
    Release(mode="top-k", k=3, decimals=2),
    Release(mode="labels"),
]
POLICIES: list[dict[str, Any]] = [
    {"mode": "full"},
    {"mode": "rounded", "decimals": 1},
    {"mode": "top-k", "k": 2},
    {"mode": "top-k", "k": 2, "decimals": 1},
    {"mode": "labels"},
]


def released(base: Release, rows: int = 40) -> Released:
    facts, answer = make_facts(), make_scores(rows).values
    return Released(base.say(np, answer, facts, base.settings(facts)), np.arange(rows) % 3 == 0)


@pytest.mark.parametrize("base", BASES, ids=lambda b: f"{b.mode}-{b.decimals}")
@pytest.mark.parametrize("asked", POLICIES, ids=lambda p: "-".join(map(str, p.values())))
def test_a_policy_says_of_the_released_what_it_would_say_of_the_answer(base: Release, asked: dict[str, Any]) -> None:
    facts, answer = make_facts(), make_scores(40).values
    try:
        releases = CallerReleases(base, {"alice": asked}, facts)
    except GuardError as error:
        assert "a host may only tighten" in str(error)  # noqa: PT017  the other outcome is checked below
        return
    policy = releases.of("alice")
    assert policy is not None
    found = releases.tightened(policy, released(base))
    assert [(n, x.dtype, x.shape[1:]) for n, x in found.outputs.items()] == list(releases.outputs("alice"))
    if base.mode == "full":  # after rounding, ties may fall otherwise
        expected = policy.say(np, answer, facts, policy.settings(facts))
        for name, value in expected.items():
            np.testing.assert_array_equal(found.outputs[name], value)
    np.testing.assert_array_equal(found.uncertain, released(base).uncertain)


def test_each_stricter_policy_can_be_had_and_no_looser_one() -> None:
    modes = ["full", "rounded", "top-k", "labels"]
    facts = make_facts()
    for i, strict in enumerate(modes):
        for j, asked in enumerate(modes):
            base = Release(mode=strict, k=3, decimals=2 if strict in {"rounded", "top-k"} else None)  # type: ignore[arg-type]
            wish = {"mode": asked, "decimals": 2 if asked == "rounded" else None}
            if j >= i:
                assert CallerReleases(base, {"a": wish}, facts).of("a") is not None
            else:
                with pytest.raises(GuardError, match=r"callers\.a: .*tighten"):
                    CallerReleases(base, {"a": wish}, facts)


def test_what_is_left_out_is_as_in_the_chain() -> None:
    base = Release(mode="top-k", k=4, decimals=3)
    releases = CallerReleases(base, {"a": {"mode": "top-k", "k": None, "decimals": 1}}, make_facts())
    assert releases.of("a") == Release(mode="top-k", k=4, decimals=1)
    with pytest.raises(GuardError, match=r"callers\.a: .*tighten"):
        CallerReleases(base, {"a": {"mode": "top-k", "k": 5}}, make_facts())
    with pytest.raises(GuardError, match=r"callers\.a: .*decimals"):
        CallerReleases(Release(), {"a": {"mode": "rounded"}}, make_facts())


def test_whoever_is_not_named() -> None:
    releases = CallerReleases(Release(), {"*": {"mode": "labels"}, "partner": {"mode": "full"}}, make_facts())
    assert releases.of("stranger") == Release(mode="labels")
    assert releases.of("partner") == Release()
    assert CallerReleases(Release(), {"partner": {"mode": "labels"}}, make_facts()).of("stranger") is None
    assert CallerReleases(Release(), {}, make_facts()).of("stranger") is None


def test_a_policy_that_the_model_cannot_have() -> None:
    with pytest.raises(GuardError, match=r"callers\.a: .*classes"):
        CallerReleases(Release(), {"a": {"mode": "labels"}}, make_facts(task=Task.REGRESSION))
    with pytest.raises(GuardError, match=r"callers\.a: .*unknown field"):
        CallerReleases(Release(), {"a": {"mode": "labels", "digits": 1}}, make_facts())
