"""Rows that were asked before are known again, and others are not, whoever crafted them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.guard.conftest import make_facts, make_inputs

from garrison.guard.defenses.projection import matrix
from garrison.guard.watching.memory import SECRET_BYTES, Hasher, Rings
from garrison.types import ModelFacts

SECRET = bytes(range(SECRET_BYTES))


def hasher(facts: ModelFacts | None = None, secret: bytes = SECRET) -> Hasher:
    return Hasher(facts or make_facts(), secret)


def test_a_digest_is_of_the_row_alone_and_of_all_of_it() -> None:
    x = make_inputs(200)
    found = hasher()({"x": x})
    np.testing.assert_array_equal(found[7:9], hasher()({"x": x[7:9]}))
    assert len(np.unique(found)) == 200
    for position in range(x.shape[1]):
        changed = x[:1].copy()
        changed[0, position] = np.nextafter(changed[0, position], 2.0)
        assert hasher()({"x": changed}) != found[0]
    assert not np.array_equal(found, hasher(secret=bytes(SECRET_BYTES))({"x": x}))


def test_equal_numbers_have_equal_digests() -> None:
    missing = hasher(make_facts(missing=True))
    x = np.zeros((4, 12), np.float32)
    x[1] = -0.0
    x[2, 3] = np.nan
    x[3, 3] = np.array(0xFFC00001, np.uint32).view(np.float32)
    found = missing({"x": x})
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[2] != found[0]


def test_rows_that_project_alike_have_other_digests() -> None:
    """The matrix of the projection is public: any number of rows can be made that it cannot tell apart."""
    m = matrix(12, 4, 0).astype(np.float64)
    away = np.linalg.svd(m.T)[2][-1]
    x = np.full((2, 12), 0.5) + np.outer([0, 0.4], away)
    np.testing.assert_allclose((x @ m)[0], (x @ m)[1], atol=1e-12)
    a, b = hasher()({"x": x.astype(np.float32)})
    assert a != b


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float16", "float64", "int64"])
def test_every_datatype_has_digests(dtype: str) -> None:
    facts = make_facts()
    odd = dataclasses.replace(facts.inputs[0], dtype=np.dtype(dtype), shape=(3,))
    facts = dataclasses.replace(facts, inputs=(odd,))
    x = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype)
    found = hasher(facts)({"x": x})
    assert found[0] == found[3]
    assert len(np.unique(found)) == 3


def test_a_ring_knows_the_latest_rows_of_its_caller() -> None:
    rings = Rings(8, 3)
    digests = np.arange(1, 21, dtype=np.uint32)
    for start in range(0, 20, 5):
        rings.add(np.full(5, 1), np.arange(5), digests[start : start + 5])
    rings.add(np.array([0, 2]), np.zeros(2, np.intp), np.array([77, 78], np.uint32))
    known = rings.knows(np.full(20, 1), digests)
    np.testing.assert_array_equal(np.flatnonzero(known), np.arange(12, 20))
    np.testing.assert_array_equal(rings.knows(np.array([0, 1, 2]), np.full(3, 78, np.uint32)), [False, False, True])
    assert not rings.knows(np.array([0]), digests[:1])


def test_the_filter_hides_no_row_that_is_remembered_and_forgets_those_that_are_not() -> None:
    rings, rng = Rings(16, 3), np.random.default_rng(1)
    asked: list[list[int]] = [[], [], []]
    wrong = 0
    for turn in range(200):
        digests = rng.integers(1, 60, 3, dtype=np.uint32)
        places = rng.permutation(3)
        known = [int(d) in asked[p][-16:] for p, d in zip(places, digests, strict=True)]
        assert rings.knows(places, digests).tolist() == known
        wrong += known.count(False)
        if turn % 3:
            rings.add(places, np.zeros(3, np.intp), digests)
        else:  # several rows of one caller
            rings.add(np.repeat(places, 2), np.tile([0, 1], 3), np.repeat(digests, 2))
        for p, d in zip(places.tolist(), digests.tolist(), strict=True):
            asked[p] += [d] * (1 if turn % 3 else 2)
    assert wrong > 100
    again = Rings(16, 3)
    again.table.write(np.arange(3), rings.table.read(np.arange(3)))
    assert not again.knows(np.zeros(1, np.intp), np.array(asked[0][-1:], np.uint32))
    again.look()
    assert again.knows(np.zeros(1, np.intp), np.array(asked[0][-1:], np.uint32))
