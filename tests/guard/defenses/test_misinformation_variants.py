"""Deceptive and label-preserving misinformation: which class is named, the same bits in any batch, near-duplicates alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.guard.conftest import CLASSES, KEY, make_facts, make_inputs

from garrison.errors import GuardError
from garrison.guard.base import Noise
from garrison.guard.defenses.adaptive_misinformation import AdaptiveMisinformation
from garrison.guard.defenses.deceptive_misinformation import DeceptiveMisinformation
from garrison.guard.defenses.label_preserving_misinformation import LabelPreservingMisinformation
from garrison.guard.keyed import KeyedTable
from garrison.guard.pipeline import load_defense
from garrison.types import Array, DefenseSpec, FloatArray

ROWS = 400
BELOW = -9.0


def noise_of(defense: AdaptiveMisinformation, rows: int = ROWS, key: bytes = KEY, seed: int = 0) -> list[Noise]:
    drawer = defense.noise_drawer(make_facts())
    return KeyedTable(key, defense.name, drawer)({"x": make_inputs(rows, seed)}, slice(None))


def answers(defense: AdaptiveMisinformation, f: FloatArray, key: bytes = KEY, seed: int = 0) -> FloatArray:
    signals = {"confidence": np.full(len(f), BELOW)}
    return defense.redraw_rows(f, np.zeros_like(f), signals, noise_of(defense, len(f), key, seed))


def probabilities(rows: int = ROWS) -> FloatArray:
    return np.random.default_rng(2).dirichlet(np.full(CLASSES, 0.5), rows)


@pytest.mark.parametrize("constant_time", [False, True])
@pytest.mark.parametrize("nu", [5.0, 1000.0])
@pytest.mark.parametrize(
    "kind", [DeceptiveMisinformation, LabelPreservingMisinformation], ids=["deceptive", "label-preserving"]
)
def test_many_rows_get_the_same_answers_as_one_to_the_last_bit(
    kind: type[AdaptiveMisinformation], nu: float, constant_time: bool
) -> None:
    defense = kind(tau=0.5, nu=nu, constant_time=constant_time)
    rng = np.random.default_rng(1)
    f, confidence = probabilities(), rng.random(ROWS)
    wrong = np.log(rng.dirichlet(np.ones(CLASSES), ROWS))
    f[0], f[1, 0], f[2, 3], f[3], f[4] = np.nan, np.nan, np.nan, 1 / CLASSES, np.eye(CLASSES)[2]
    confidence[5] = np.nan
    noise = noise_of(defense)
    many = defense.redraw_rows(f, wrong, {"confidence": confidence}, noise)
    one = [
        defense.redraw(f[i].tolist(), wrong[i].tolist(), {"confidence": confidence[i].item()}, noise[i])
        for i in range(ROWS)
    ]
    np.testing.assert_array_equal(many, np.array(one))
    assert np.isfinite(many[5:]).all()


def test_deceptive_never_names_the_first_choice_and_prefers_what_f_thinks_likely() -> None:
    f = probabilities()
    named = answers(DeceptiveMisinformation(tau=0.5), f).argmax(axis=1)
    ranks = np.argsort(np.argsort(-f, axis=1), axis=1)[np.arange(ROWS), named]
    assert (ranks > 0).all()
    assert (ranks <= 2).mean() > 0.4  # by chance it would be 2 of CLASSES - 1
    assert np.bincount(named, minlength=CLASSES).max() < 0.4 * ROWS
    runner_up = answers(DeceptiveMisinformation(tau=0.5, spread=0.0), f).argmax(axis=1)
    np.testing.assert_array_equal(runner_up, np.argsort(-f, axis=1)[:, 1])
    assert len(set(answers(AdaptiveMisinformation(tau=0.5), f).argmax(axis=1)[:50].tolist())) > 2


def test_deceptive_answers_near_duplicates_alike_and_adaptive_does_not() -> None:
    """The control arm is the defense that draws a class for each input."""
    f = np.repeat(probabilities(20), 20, axis=0)

    def alike(defense: AdaptiveMisinformation) -> float:
        named = answers(defense, f).argmax(axis=1).reshape(20, 20)
        return float((named == named[:, :1]).mean())

    assert alike(DeceptiveMisinformation(tau=0.5)) == 1.0
    assert alike(AdaptiveMisinformation(tau=0.5)) < 0.5


def test_deceptive_classes_depend_on_the_key() -> None:
    f, defense = probabilities(), DeceptiveMisinformation(tau=0.5)
    mine, other = (answers(defense, f, key).argmax(axis=1) for key in (KEY, bytes(range(1, 33))))
    assert 0.1 < (mine != other).mean() < 0.95


def test_label_preserving_keeps_the_first_choice_and_nothing_else() -> None:
    f, defense = probabilities(), LabelPreservingMisinformation(tau=0.5)
    m = answers(defense, f)
    np.testing.assert_array_equal(m.argmax(axis=1), f.argmax(axis=1))
    np.testing.assert_allclose(m.sum(axis=1), 1.0, rtol=1e-5)
    rest: Array = np.array([_without_first(row, first) for row, first in zip(m, f.argmax(axis=1), strict=True)])
    known: Array = np.array([_without_first(row, row.argmax()) for row in f])
    assert abs(np.corrcoef(rest.argmax(axis=1), known.argmax(axis=1))[0, 1]) < 0.15
    assert abs(np.corrcoef(m.max(axis=1), f.max(axis=1))[0, 1]) < 0.15


def _without_first(row: FloatArray, first: np.intp) -> FloatArray:
    return np.delete(row, first)


def test_near_tau_the_mixture_still_keeps_the_label() -> None:
    f, defense = probabilities(), LabelPreservingMisinformation(tau=0.5, nu=20.0)
    signals = {"confidence": np.full(ROWS, 0.5)}
    mixed = defense.redraw_rows(f, np.zeros_like(f), signals, noise_of(defense))
    np.testing.assert_array_equal(mixed.argmax(axis=1), f.argmax(axis=1))


@pytest.mark.parametrize("spread", [-1.0, 11.0, math.nan])
def test_a_spread_that_cannot_be(spread: float) -> None:
    with pytest.raises(GuardError, match="spread"):
        load_defense(DefenseSpec(name="deceptive-misinformation", parameters={"tau": 0.5, "spread": spread}))


@pytest.mark.parametrize("name", ["deceptive-misinformation", "label-preserving-misinformation"])
def test_a_host_may_raise_tau_alone(name: str) -> None:
    signed = load_defense(DefenseSpec(name=name, parameters={"tau": 0.5}))
    load_defense(DefenseSpec(name=name, parameters={"tau": 0.6})).check_tightened(signed)
    for change in ({"tau": 0.4}, {"tau": 0.6, "nu": 5.0}):
        with pytest.raises(GuardError, match="tighten"):
            load_defense(DefenseSpec(name=name, parameters=change)).check_tightened(signed)
