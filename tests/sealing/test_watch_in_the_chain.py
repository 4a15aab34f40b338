"""Calibrated detectors in the chain that is sealed: in shadow, until the owner arms them."""

from __future__ import annotations

import numpy as np
import pytest

from garrison.errors import GuardError
from garrison.hardening.watching import Watched
from garrison.sealing.chain import build_chain, edit_chain
from garrison.sealing.options import SealOptions
from garrison.types import Array, DefenseSpec, Task

WATCHED = Watched(
    {"ood-rate": {"threshold": 9.0, "edges": (0.5,), "nats": (1.0, -1.0)}}, {"watch_callers": 60.0}, ("!",)
)


def answers() -> dict[str, Array]:
    odds = np.random.default_rng(0).dirichlet(np.ones(3), 200)
    return {"probabilities": odds.astype(np.float32)}


def built(watched: Watched | None, **options: object) -> tuple[DefenseSpec, ...]:
    chosen = SealOptions(name="m", **options)  # type: ignore[arg-type]
    return build_chain(answers(), Task.CLASSIFICATION, None, chosen, "probabilities", watched).specs


def names(specs: tuple[DefenseSpec, ...]) -> list[str]:
    return [spec.name + " (shadow)" * spec.shadow for spec in specs]


def test_detectors_run_in_shadow_beside_what_they_look_at() -> None:
    assert names(built(WATCHED)) == [
        "bounds",
        "sanctions",
        "projection",
        "max-probability",
        "watch (shadow)",
        "release",
    ]
    chain = build_chain(answers(), Task.CLASSIFICATION, None, SealOptions(name="m"), "probabilities", WATCHED)
    assert chain.metrics["watch_callers"] == 60
    assert "!" in chain.notes


def test_without_detectors_there_is_no_watch() -> None:
    assert names(built(None)) == names(built(Watched({}, {}))) == ["bounds", "max-probability", "release"]


def test_the_owner_arms_them_at_once_or_later() -> None:
    assert "watch" in names(built(WATCHED, arm=frozenset({"watch"}), on_ood="uncertain"))
    hardened = built(WATCHED, on_ood="uncertain")
    assert "watch (shadow)" in names(edit_chain(hardened, SealOptions(name="m")))
    armed = edit_chain(hardened, SealOptions(name="m", arm=frozenset({"watch"})))
    assert names(armed)[2:] == ["projection", "max-probability", "watch", "reject-option", "release"]


def test_what_is_not_there_cannot_be_armed() -> None:
    with pytest.raises(GuardError, match="--arm watch: the chain has no such defense"):
        built(None, arm=frozenset({"watch"}))
    with pytest.raises(GuardError, match="leave out --shadow or --arm"):
        built(WATCHED, arm=frozenset({"watch"}), shadow=frozenset({"watch"}), on_ood="refuse")
