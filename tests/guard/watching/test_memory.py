"""Rows that a caller asked lately are known, and others are not."""

from __future__ import annotations

import numpy as np

from garrison.guard.watching.memory import Rings


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
