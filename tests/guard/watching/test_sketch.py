from __future__ import annotations

import numpy as np
import pytest
from tests.guard.conftest import FEATURES, make_facts, make_inputs

from garrison.guard.defenses.projection import MOST_GROUPS
from garrison.guard.watching.sketch import Sketch
from garrison.types import InputFacts, ModelFacts, Task

WIDTH = 32


def facts_of(*shapes: tuple[int, ...]) -> ModelFacts:
    inputs = tuple(
        InputFacts(f"x{i}", np.dtype(np.float32), s, np.zeros(s), np.ones(s), np.full(s, fill_value=True))
        for i, s in enumerate(shapes)
    )
    return ModelFacts(Task.CLASSIFICATION, inputs, ("a", "b"), 2, np.dtype(np.float32), False, False)


def test_keeps_distances_and_follows_from_the_secret_alone() -> None:
    x = make_inputs(200)
    one, again, other = (Sketch(make_facts(), secret, 256)({"x": x}) for secret in (b"a", b"a", b"b"))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1, "control: another secret, another projection"
    apart = np.linalg.norm(x[:100] - x[100:], axis=1)
    for found in (one, other):
        np.testing.assert_allclose(np.linalg.norm(found[:100] - found[100:], axis=1), apart, rtol=0.25)


def test_several_inputs_and_large_ones_are_averaged() -> None:
    size = 2 * MOST_GROUPS
    rng = np.random.default_rng(0)
    inputs = {"x0": rng.random((3, size), dtype=np.float32), "x1": rng.random((3, 2, 2), dtype=np.float32)}
    found = Sketch(facts_of((size,), (2, 2)), b"a", WIDTH)(inputs)
    assert found.shape == (3, WIDTH)
    swapped = inputs["x0"].reshape(3, -1, 2)[:, :, ::-1].reshape(3, -1)
    np.testing.assert_allclose(
        Sketch(facts_of((size,), (2, 2)), b"a", WIDTH)(inputs | {"x0": swapped}), found, atol=1e-4
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_is_finite_whatever_comes(value: float) -> None:
    x = make_inputs(4)
    x[1, 3] = value
    found = Sketch(make_facts(), b"a", WIDTH)({"x": x})
    assert np.isfinite(found).all()
    np.testing.assert_allclose(
        found[[0, 2]], Sketch(make_facts(), b"a", WIDTH)({"x": make_inputs(4)})[[0, 2]], rtol=1e-5
    )
    assert x.shape[1] == FEATURES
