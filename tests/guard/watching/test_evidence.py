"""Sums of evidence are Page's, row by row, however rows are cut; alarms begin at the row and end by time alone."""

from __future__ import annotations

import numpy as np
import pytest

from garrison.guard.detectors.turns import order_of
from garrison.guard.watching.evidence import Evidence
from garrison.guard.watching.groups import Groups

THRESHOLDS = np.array([5.0, 8.0])
HALF_LIFE = 100.0


def by_hand(keys: list[int], nats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums in the end (by key), and whether the alarm rings at each row."""
    sums, on = np.zeros((8, 2)), np.zeros((8, 2), dtype=bool)
    rings = []
    for key, x in zip(keys, nats, strict=True):
        sums[key] = np.maximum(0.0, sums[key] + x)
        on[key] |= sums[key] >= THRESHOLDS
        rings.append(on[key].copy())
    return sums, np.array(rings)


@pytest.mark.parametrize("cut", [1, 3, 7, 64])
def test_it_sums_as_row_by_row(cut: int) -> None:
    rng = np.random.default_rng(cut)
    keys = rng.integers(0, 8, 64)
    nats = rng.normal(0.3, 2.0, (64, 2))
    evidence = Evidence(THRESHOLDS, HALF_LIFE, 8)
    rings = []
    for i in range(0, 64, cut):
        found = evidence.add(order_of(keys[i : i + cut]), nats[i : i + cut], 0.0)
        rings.append(np.zeros((len(keys[i : i + cut]), 2), bool) if found.rings is None else found.rings)
    sums, expected = by_hand(keys.tolist(), nats)
    np.testing.assert_allclose(evidence.sums(np.arange(8), 0.0), sums, atol=1e-12)
    np.testing.assert_array_equal(np.concatenate(rings), expected)
    assert expected.any(), "control: an alarm rang"


def test_an_alarm_begins_once_at_its_row_and_honest_rows_do_not_end_it() -> None:
    evidence = Evidence(THRESHOLDS, HALF_LIFE, 4)
    keys = np.array([2, 1, 2, 2, 2])
    found = evidence.add(order_of(keys), np.array([[3.0, 0], [9.0, 0], [1.0, 0], [1.0, 0], [4.0, 0]]), 0.0)
    assert [(r.row, r.key, r.detector) for r in found.begun] == [(1, 1, 0), (3, 2, 0)]
    assert found.rings is not None
    np.testing.assert_array_equal(found.rings[:, 0], [False, True, False, True, True])
    for _ in range(50):
        found = evidence.add(order_of(np.array([2, 3])), np.array([[-5.0, -5.0], [-5.0, -5.0]]), 0.0)
        assert found.rings is not None
        np.testing.assert_array_equal(found.rings[:, 0], [True, False])
        assert not found.begun
    assert evidence.sums(np.array([2]), 0.0)[0, 0] == 0.0


def test_alarms_and_sums_fade_and_a_clock_set_back_takes_nothing() -> None:
    evidence = Evidence(THRESHOLDS, HALF_LIFE, 2)
    evidence.add(order_of(np.array([0])), np.array([[5.0, 4.0]]), 1000.0)
    assert evidence.ringing(0, 0.0) is not None
    np.testing.assert_allclose(evidence.sums(np.array([0]), 1100.0)[0], [2.5, 2.0])
    before, after = evidence.ringing(0, 1099.0), evidence.ringing(0, 1101.0)
    assert before is not None
    assert after is not None
    assert before.tolist() == [True, False]
    assert after.tolist() == [False, False]
    found = evidence.add(order_of(np.array([0])), np.array([[0.0, 0.0]]), 1101.0)
    assert found.rings is None
    assert evidence.quiet
    again = evidence.add(order_of(np.array([0])), np.array([[50.0, 0.0]]), 1101.0)
    assert len(again.begun) == 1, "an alarm that has ended can ring again"
    assert evidence.sums(np.array([0]), 1101.0)[0, 0] == 40.0, "and is kept below eight thresholds"


def groups_of(places: int) -> tuple[Evidence, Groups]:
    alone = Evidence(THRESHOLDS, HALF_LIFE, places)
    return alone, Groups(alone, THRESHOLDS, HALF_LIFE, places)


def test_linked_callers_are_summed() -> None:
    alone, groups = groups_of(6)
    alone.add(order_of(np.arange(4)), np.full((4, 2), 2.0), 0.0)
    assert groups.link(np.array([[0, 1]]), 0.0) == []
    begun = groups.link(np.array([[2, 1]]), 0.0)
    assert [(r.row, r.detector, r.nats) for r in begun] == [(0, 0, 6.0)]
    assert groups.members(0).tolist() == [0, 1, 2]
    joined = groups.link(np.array([[4, 0]]), 0.0)
    assert [(r.row, r.detector) for r in joined] == [(-1, 0)], "whoever joins an alarmed group is alarmed"
    assert groups.size(4) == 4
    assert groups.size(3) == 1, "control"
    assert groups.link(np.array([[4, 1]]), 0.0) == []


def test_who_leaves_stands_alone_and_the_rest_keep_their_sum() -> None:
    alone, groups = groups_of(6)
    alone.add(order_of(np.arange(3)), np.full((3, 2), 1.5), 0.0)
    groups.link(np.array([[0, 1], [1, 2]]), 0.0)
    first = int(groups.label[0])
    groups.leave(first)
    rest = [p for p in (0, 1, 2) if p != first]
    assert groups.size(first) == 1
    assert groups.members(rest[0]).tolist() == rest
    label = groups.label[[rest[0]]]
    assert label[0] in rest
    assert groups.evidence.sums(label, 0.0)[0, 0] == 4.5
    groups.leave(rest[0])
    assert not groups, "one alone is no group"
    np.testing.assert_array_equal(groups.label, np.arange(6))


def test_links_that_nobody_names_again_end() -> None:
    _, groups = groups_of(4)
    groups.link(np.array([[0, 1], [1, 2]]), 0.0)
    groups.link(np.array([[0, 1]]), 90.0)
    groups.part(np.array([0, 1, 2]), 120.0)
    assert groups.members(0).tolist() == [0, 1]
    assert groups.size(2) == 1
