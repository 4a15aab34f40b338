from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, norm
from tests.guard.conftest import KEY, make_batch, make_facts, make_inputs

from garrison.errors import GuardError
from garrison.guard.base import Code, Verdict, View
from garrison.guard.defenses.randomized_smoothing import RandomizedSmoothing, limits
from garrison.guard.defenses.release import RADIUS, Release
from garrison.guard.keyed import KeyedTable
from garrison.guard.pipeline import load_defense
from garrison.types import Array, DefenseSpec, FloatArray, RawScores, Task


def asked(defense: RandomizedSmoothing, x: Array, key: bytes = KEY, slope: float = 40.0) -> Verdict:
    """A model of two classes: whether the mean of the first two features is above 1/2."""

    def again(inputs: dict[str, Array]) -> FloatArray:
        z = slope * (inputs["x"][:, :2].mean(axis=1) - 0.5)
        p = 1 / (1 + np.exp(-z))
        return np.stack([1 - p, p], axis=1).astype(np.float32)

    facts = make_facts(outputs=2)
    table = KeyedTable(key, defense.name, defense.noise_drawer(facts))
    raw = RawScores(again({"x": x}), again=again)
    nobody = np.zeros(len(x), dtype=np.bool_)
    return defense(View(make_batch(x), facts, raw, raw.values, nobody, {}, lambda rows: table({"x": x}, rows)))


def rows_at(mean: float, rows: int = 1) -> Array:
    x = make_inputs(rows)
    x[:, :2] = mean
    return x


@pytest.mark.parametrize(("copies", "alpha"), [(20, 0.01), (100, 0.001)])
def test_limits_are_those_of_another_library(copies: int, alpha: float) -> None:
    votes = np.arange(1, copies + 1)
    np.testing.assert_allclose(limits(copies, alpha)[1:], beta.ppf(alpha, votes, copies - votes + 1), rtol=1e-6)
    assert limits(copies, alpha)[0] == 0


def test_a_sure_vote_is_answered_with_its_radius_and_a_close_one_is_not() -> None:
    defense = RandomizedSmoothing(sigma=0.1)
    verdict = asked(defense, np.concatenate([rows_at(0.9), rows_at(0.5), rows_at(0.1)]))
    assert (verdict.codes == Code.REPLACE).all()
    assert verdict.values is not None
    assert verdict.uncertain is not None
    assert verdict.uncertain.tolist() == [False, True, False]
    assert verdict.values.argmax(axis=1)[[0, 2]].tolist() == [1, 0]
    np.testing.assert_allclose(verdict.values[1], 0.5)
    best = 0.1 * norm.ppf(0.001 ** (1 / 100))
    np.testing.assert_allclose(verdict.signals[RADIUS], [best, 0, best], rtol=1e-6)


def test_within_the_radius_the_class_stays() -> None:
    """The model is linear in the mean of two features: the true smoothed boundary is known, and certified balls end before it."""
    defense = RandomizedSmoothing(sigma=0.1, copies=200)
    for mean in (0.55, 0.6, 0.7):
        x = rows_at(mean, 20)
        x[:, 2:] = np.random.default_rng(1).random((20, x.shape[1] - 2))
        verdict = asked(defense, x)
        distance = math.sqrt(2) * (mean - 0.5)  # to mean = 1/2, along both features
        assert (verdict.signals[RADIUS] <= distance).all()
        moved = x.copy()
        moved[:, :2] -= (verdict.signals[RADIUS] * 0.95 / math.sqrt(2))[:, None]
        again = asked(defense, moved.astype(np.float32))
        assert verdict.uncertain is not None
        assert again.values is not None
        assert again.uncertain is not None
        assert not (~again.uncertain & (again.values.argmax(axis=1) == 0)).any()
        moved[:, :2] = 1 - x[:, :2]
        beyond = asked(defense, moved.astype(np.float32))
        assert beyond.values is not None
        assert (beyond.values.argmax(axis=1) == 0).all(), "control: far beyond it the class is the other one"


def test_the_answer_follows_from_the_input_and_the_key_alone() -> None:
    defense, x = RandomizedSmoothing(sigma=0.3), rows_at(0.65, 12)
    first, again, alone = asked(defense, x), asked(defense, x), asked(defense, x[3:4])
    other = asked(defense, x, bytes(32))
    assert first.values is not None
    assert alone.values is not None
    assert other.values is not None
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.values[3:4], alone.values)
    assert (first.signals[RADIUS] != other.signals[RADIUS]).any(), "control: another key, other noise"
    assert len(np.unique(first.signals[RADIUS])) > 1, "control: other inputs, other noise"


@pytest.mark.parametrize(
    "wrong", [{"sigma": 0.0}, {"alpha": 0.5}, {"copies": 0}, {"copies": 5}, {"copies": 2000}, {"choosing": 0}]
)
def test_what_makes_no_sense_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(GuardError, match="randomized-smoothing"):
        load_defense(DefenseSpec(name="randomized-smoothing", parameters=wrong))


def test_what_it_cannot_smooth() -> None:
    RandomizedSmoothing().check(make_facts())
    with pytest.raises(GuardError, match="vote on classes"):
        RandomizedSmoothing().check(make_facts(Task.REGRESSION))
    facts = make_facts()
    endless = type(facts.inputs[0])("x", np.dtype(np.float32), (2,), np.zeros(2), np.full(2, np.inf), np.zeros(2, bool))
    with pytest.raises(GuardError, match="stated range"):
        RandomizedSmoothing().check(
            type(facts)(
                facts.task, (endless,), facts.labels, 2, facts.value_dtype, has_logits=False, has_misinformation=False
            )
        )


def test_the_radius_is_released_only_where_asked_and_never_beside_misinformation() -> None:
    smoothing, release = RandomizedSmoothing(), Release(radius=True)
    release.check_chain([smoothing])
    assert release.describe_outputs(make_facts())[-1] == (RADIUS, np.dtype(np.float32), (1,))
    with pytest.raises(GuardError, match="no defense of the chain certifies"):
        release.check_chain([])
    wrong = load_defense(DefenseSpec(name="adaptive-misinformation", parameters={"tau": 0.5}))
    with pytest.raises(GuardError, match="makes up"):
        release.check_chain([smoothing, wrong])
    with pytest.raises(GuardError, match="only tighten"):
        release.check_tightened(Release())
    Release().check_tightened(release)
