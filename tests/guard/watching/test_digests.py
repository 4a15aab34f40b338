"""Rows that were asked before are known again, and others are not, whoever crafted them: short rows and long ones alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from tests.guard.conftest import make_facts, make_inputs

from garrison.guard.defenses.projection import matrix
from garrison.guard.watching import digests
from garrison.guard.watching.digests import LONG, SECRET_BYTES, Hasher
from garrison.types import Array, InputFacts, ModelFacts

SECRET = bytes(range(SECRET_BYTES))
KEPT = {"short": 1178069524, "long": 1865085117}
"""Of twelve numbers from 0 to 1, under the secret above."""
Make = Callable[..., Hasher]


def facts_of(*inputs: tuple[str, tuple[int, ...]]) -> ModelFacts:
    facts = make_facts()
    specs = (
        InputFacts(f"x{i}", np.dtype(dtype), shape, np.zeros(shape), np.ones(shape), np.zeros(shape, np.bool_))
        for i, (dtype, shape) in enumerate(inputs)
    )
    return dataclasses.replace(facts, inputs=tuple(specs))


def rows_of(size: int) -> Array:
    return np.random.default_rng(0).random((3, size // 4), dtype=np.float32)


@pytest.fixture(params=["short", "long"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes hashers, the way of which does not depend on the rows' size."""
    monkeypatch.setattr(digests, "LONG", 1 if request.param == "long" else 2**62)
    return lambda facts=None, secret=SECRET: Hasher(facts or make_facts(), secret)


def test_a_digest_is_of_the_row_alone_and_of_all_of_it(make: Make) -> None:
    x = make_inputs(200)
    found = make()({"x": x})
    assert found.dtype == np.uint32
    assert found.shape == (200,)
    np.testing.assert_array_equal(found[7:9], make()({"x": x[7:9]}))
    assert len(np.unique(found)) == 200
    for position in range(x.shape[1]):
        changed = x[:1].copy()
        changed[0, position] = np.nextafter(changed[0, position], 2.0)
        assert make()({"x": changed}) != found[0]
    assert not np.array_equal(found, make(secret=bytes(SECRET_BYTES))({"x": x}))


def test_digests_are_those_that_were_kept(make: Make, request: pytest.FixtureRequest) -> None:
    """Whoever changes how they are made gives `dump.VERSION` another number, else rows that were asked before are not known again."""
    found = make()({"x": np.linspace(0, 1, 12, dtype=np.float32)[np.newaxis]})
    assert found == KEPT[request.node.callspec.params["make"]]


def test_equal_numbers_have_equal_digests(make: Make) -> None:
    missing = make(make_facts(missing=True))
    x = np.zeros((4, 12), np.float32)
    x[1] = -0.0
    x[2, 3] = np.nan
    x[3, 3] = np.array(0xFFC00001, np.uint32).view(np.float32)
    found = missing({"x": x})
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[2] != found[0]


def test_rows_that_project_alike_have_other_digests(make: Make) -> None:
    """The matrix of the projection is public: any number of rows can be made that it cannot tell apart."""
    m = matrix(12, 4, 0).astype(np.float64)
    away = np.linalg.svd(m.T)[2][-1]
    x = np.full((2, 12), 0.5) + np.outer([0, 0.4], away)
    np.testing.assert_allclose((x @ m)[0], (x @ m)[1], atol=1e-12)
    a, b = make()({"x": x.astype(np.float32)})
    assert a != b


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float16", "float64", "int64"])
def test_every_datatype_has_digests(make: Make, dtype: str) -> None:
    x = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype)
    found = make(facts_of((dtype, (3,))))({"x0": x})
    assert found[0] == found[3]
    assert len(np.unique(found)) == 3


def test_every_input_counts_and_none_stands_for_another(make: Make) -> None:
    hasher = make(facts_of(("float32", (2, 3)), ("float32", (6,))))
    a, b = make_inputs(2)[:, :6]
    found = [
        int(hasher({"x0": one.reshape(1, 2, 3), "x1": other.reshape(1, 6)})[0])
        for one, other in ((a, b), (a, a), (b, b), (b, a), (a, b))
    ]
    assert found[0] == found[4]
    assert len(set(found)) == 4


@pytest.mark.parametrize(("size", "long"), [(LONG - 4, False), (LONG, True), (LONG + 4, True)])
def test_the_size_of_the_models_rows_decides(monkeypatch: pytest.MonkeyPatch, size: int, *, long: bool) -> None:
    facts, x = facts_of(("float32", (size // 8,)), ("float32", (size // 4 - size // 8,))), rows_of(size)
    inputs = {"x0": x[:, : size // 8], "x1": x[:, size // 8 :]}
    found = Hasher(facts, SECRET)(inputs)
    for forced in (True, False):
        monkeypatch.setattr(digests, "LONG", 1 if forced else 2**62)
        assert np.array_equal(Hasher(facts, SECRET)(inputs), found) == (forced == long)


@pytest.mark.parametrize("size", [LONG - 4, LONG, LONG + 4, 4 * 150_528])
def test_on_both_sides_of_the_threshold_every_place_counts(size: int) -> None:
    x = rows_of(size)
    hasher = Hasher(facts_of(("float32", (size // 4,))), SECRET)
    found = hasher({"x0": x})
    np.testing.assert_array_equal(hasher({"x0": x}), found)
    assert len(set(found.tolist())) == 3
    np.testing.assert_array_equal(hasher({"x0": x[1:2]}), found[1:2])
    for place in (0, size // 8, size // 4 - 1):
        changed = x[:1].copy()
        changed.view(np.uint32)[0, place] ^= 1
        assert hasher({"x0": changed}) != found[0]


def test_long_rows_are_hashed_otherwise_and_linear_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest of short rows is a sum: what a change adds to it is the same for every row, but for a carry. Of long rows it says nothing about another."""

    def steps(long: int) -> set[int]:
        monkeypatch.setattr(digests, "LONG", long)
        x = np.random.default_rng(1).integers(0, 2**30, (20, 12), dtype=np.int32)
        changed = x.copy()
        changed[:, 5] += 1
        hasher = Hasher(facts_of(("int32", (12,))), SECRET)
        return set((hasher({"x0": changed}) - hasher({"x0": x})).tolist())

    assert len(steps(2**62)) <= 2, "control: one change, one difference"
    assert len(steps(1)) == 20
