from __future__ import annotations

from typing import Any

import array_api_strict
import numpy as np
import pytest
from scipy.ndimage import median_filter
from tests.guard.conftest import CLASSES, make_batch, make_facts, make_inputs, make_scores

from garrison.errors import GuardError
from garrison.guard.base import Code, View
from garrison.guard.defenses.feature_squeezing import FeatureSqueezing
from garrison.guard.pipeline import load_defense
from garrison.guard.squeezing import disagreement, median, squeezed
from garrison.types import Array, DefenseSpec, InputFacts, ModelFacts, RawScores, Task


def pictures(rows: int = 3, shape: tuple[int, ...] = (2, 7, 6)) -> Array:
    return np.random.default_rng(4).random((rows, *shape), dtype=np.float32)


def spec_of(shape: tuple[int, ...] = (2, 7, 6), low: float = 0.0, high: float = 1.0) -> InputFacts:
    size = int(np.prod(shape))
    ends = [np.full(size, v, np.float32) for v in (low, high)]
    return InputFacts("x", np.dtype(np.float32), shape, ends[0], ends[1], np.zeros(size, np.bool_))


def facts_of(spec: InputFacts, task: Task = Task.CLASSIFICATION, *, has_squeezed: bool = True) -> ModelFacts:
    kind = np.dtype(np.float32)
    return ModelFacts(
        task, (spec,), (), CLASSES, kind, has_logits=False, has_misinformation=False, has_squeezed=has_squeezed
    )


def test_the_median_of_nine_is_that_of_another_library() -> None:
    x = pictures()
    np.testing.assert_array_equal(median(np, x, 3), median_filter(x, size=(1, 1, 3, 3), mode="nearest"))


def test_the_median_of_four_is_the_mean_of_the_middle_two() -> None:
    x = pictures()
    wide = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)), mode="edge")
    four = np.stack([wide[:, :, :-1, :-1], wide[:, :, :-1, 1:], wide[:, :, 1:, :-1], wide[:, :, 1:, 1:]])
    np.testing.assert_allclose(median(np, x, 2), np.median(four, axis=0), rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_fewer_bits_leave_so_many_values_within_the_range(low: float, high: float) -> None:
    x = low + pictures() * (high - low)
    found = squeezed(np, x, spec_of(low=low, high=high), 2, 0)[0]
    assert len(np.unique(np.round((found - low) / (high - low), 5))) == 4
    assert np.abs(found - x).max() <= (high - low) / 6 * 1.001
    assert found.dtype == np.float32


def test_its_arithmetic_is_plain_array_api() -> None:
    xp, x = array_api_strict, pictures()
    for bits, window in ((3, 2), (0, 3)):
        strict = squeezed(xp, xp.asarray(x), spec_of(), bits, window)
        for mine, other in zip(squeezed(np, x, spec_of(), bits, window), strict, strict=True):
            np.testing.assert_array_equal(mine, np.asarray(other))


def test_the_copy_that_differs_most_counts_and_nan_is_kept() -> None:
    p = np.array([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5], [0.5, 0.5]])
    copies = np.array([[0.5, 0.5, 0.5, 0.5], [0.9, 0.1, 0.1, 0.9], [0.6, 0.4, 0.5, 0.5], [np.nan, 0.5, 0.5, 0.5]])
    np.testing.assert_allclose(disagreement(np, p, copies, 2), [0.0, 1.6, 0.2, np.nan])
    np.testing.assert_allclose(disagreement(np, p, copies[:, [2, 3, 0, 1]], 2), [0.0, 1.6, 0.2, np.nan])


def view_with(apart: list[float]) -> View:
    """Rows whose copies lie so far apart."""
    raw = make_scores(len(apart))
    values = np.full((len(apart), CLASSES), 0.1, np.float32)
    copies = np.concatenate([values, values], axis=1)
    copies[:, 0] += np.array(apart, np.float32)
    return View(
        make_batch(make_inputs(len(apart)), (1,) * len(apart)),
        make_facts(),
        RawScores(values, squeezed=copies),
        values,
        np.zeros(len(apart), dtype=np.bool_),
        {"confidence": raw.values.max(axis=1)},
    )


@pytest.mark.parametrize("action", ["distrust", "uncertain", "refuse"])
def test_what_disagrees_loses_its_confidence_whatever_the_action(action: Any) -> None:
    view = view_with([0.1, 0.9, np.nan])
    verdict = FeatureSqueezing(threshold=0.5, action=action)(view)
    assert np.isnan(verdict.signals["confidence"]).tolist() == [False, True, True]
    assert verdict.signals["confidence"][0] == view.signals["confidence"][0]
    mind = Code.REFUSE if action == "refuse" else Code.REPLACE
    assert verdict.codes.tolist() == [Code.KEEP, mind, mind]
    if action == "distrust":
        assert verdict.values is not None
        np.testing.assert_array_equal(verdict.values, view.answer)
        assert verdict.uncertain is None
    if action == "uncertain":
        assert verdict.uncertain is not None
        assert verdict.uncertain.tolist() == [False, True, True]
        assert verdict.values is not None
        np.testing.assert_allclose(verdict.values[1:], 1 / CLASSES)


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        (facts_of(spec_of((12,))), "squeezes pictures"),
        (facts_of(spec_of((1, 1, 9))), "squeezes pictures"),
        (facts_of(spec_of(), Task.REGRESSION), "compares probabilities"),
        (facts_of(spec_of(high=np.inf)), "needs the range"),
        (facts_of(spec_of(), has_squeezed=False), "choose it at sealing"),
    ],
)
def test_inputs_that_it_makes_no_sense_for(facts: ModelFacts, match: str) -> None:
    with pytest.raises(GuardError, match=match):
        FeatureSqueezing(threshold=0.5).check(facts)


def test_an_uncalibrated_one_does_not_start() -> None:
    FeatureSqueezing(threshold=0.5).check(facts_of(spec_of()))
    with pytest.raises(GuardError, match="not calibrated"):
        FeatureSqueezing().check(facts_of(spec_of()))


def test_it_does_not_say_uncertain_beside_misinformation() -> None:
    wrong = load_defense(DefenseSpec(name="adaptive-misinformation", parameters={"tau": 0.5}))
    FeatureSqueezing(threshold=0.5).check_chain([wrong])
    with pytest.raises(GuardError, match="use 'distrust'"):
        FeatureSqueezing(threshold=0.5, action="uncertain").check_chain([wrong])


def test_a_host_may_only_tighten() -> None:
    signed = FeatureSqueezing(threshold=0.5, action="uncertain")
    FeatureSqueezing(threshold=0.4, action="refuse").check_tightened(signed)
    for looser in (
        FeatureSqueezing(threshold=0.6, action="uncertain"),
        FeatureSqueezing(threshold=0.5),
        FeatureSqueezing(threshold=0.5, action="uncertain", bits=3),
    ):
        with pytest.raises(GuardError, match="only tighten"):
            looser.check_tightened(signed)
