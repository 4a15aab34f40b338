"""The detectors that look rows up in tables: what they refuse, what they say, what they remember."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from garrison.guard.detectors.base import Detector, Seen
from garrison.guard.detectors.bounded_prada import BoundedPrada, statistic
from garrison.guard.detectors.coverage import Coverage
from garrison.guard.detectors.hardness import Hardness, distance
from garrison.guard.detectors.ood_cover import OodCover
from garrison.guard.detectors.ood_rate import OodRate
from garrison.types import Array, FloatArray

EYE = tuple(map(tuple, np.eye(4).tolist()))


def seen(
    projection: Any, probability: Any = 0.5, top: Any = 0, confidence: Any = None, asked: Any = None, place: Any = 0
) -> Seen:
    x = np.atleast_2d(np.asarray(projection, dtype=np.float32))
    rows = len(x)

    def column(value: Any, dtype: Any) -> Array:
        return np.broadcast_to(np.asarray(value, dtype=dtype), (rows,)).copy()

    p = column(probability, np.float32)
    return Seen(
        place=column(place, np.intp),
        asked=np.arange(rows) if asked is None else column(asked, np.int64),
        projection=x,
        confidence=p if confidence is None else column(confidence, np.float32),
        probability=p,
        top=column(top, np.intp),
    )


def memory(detector: Detector, callers: int = 3) -> dict[str, Array]:
    return {n: np.full((callers, *c.shape), c.fill, c.dtype) for n, c in detector.columns(4).items()}


def test_ood_rate_reads_its_table() -> None:
    detector = OodRate(threshold=9.0, edges=(0.3, 0.8), nats=(2.0, 0.5, -1.0))
    rows = seen(np.zeros((4, 4)), probability=[0.1, 0.5, 0.9, math.nan])
    assert detector.weigh(rows, {}, {}).tolist() == [2.0, 0.5, -1.0, 2.0]


def test_hardness_is_a_rank_within_the_class() -> None:
    detector = Hardness(
        threshold=9.0,
        edges=((0.9,), (0.5,)),
        mean=(0.0,) * 4,
        whiten=EYE,
        far=((2.0,), (2.0,)),
        nats=(1.0, 0.4, -0.2, -0.6),
    )
    near, out = [0.0] * 4, [3.0, 0, 0, 0]
    rows = seen([near, near, out, out], probability=[0.7, 0.7, 0.7, 0.7], top=[0, 1, 0, 9])
    assert detector.weigh(rows, {}, {}).tolist() == [1.0, -0.2, 0.4, -0.6]
    assert distance(
        np.array([[1, 2, 0, 0]], np.float32), np.zeros(4, np.float32), np.eye(4, dtype=np.float32)
    ).tolist() == [5.0]


def test_ood_cover_reads_its_table() -> None:
    detector = OodCover(threshold=9.0, edges=((0.6,), (0.3,)), strange=(0.2,), nats=(2.0, -0.5, 1.0, -0.1))
    rows = seen(np.zeros((3, 4)), probability=[0.5, 0.5, 0.5], top=[0, 1, 0], confidence=[0.5, 0.5, 0.1])
    assert detector.weigh(rows, {}, {}).tolist() == [-0.5, -0.1, 2.0]


def cells(**changes: Any) -> Coverage:
    given: dict[str, Any] = {"asked": (4.0,), "new": (0.1, 0.5), "known": (-0.1, -0.4), "window": 32}
    return Coverage(threshold=9.0, planes=EYE[:2], offsets=(0.0, 0.0), **(given | changes))


def test_a_cell_is_new_once_and_again_when_its_visit_has_faded() -> None:
    detector, here = cells(), [1.0, 1, 0, 0]
    columns = memory(detector)
    assert detector.weigh(seen([here, here], asked=[0, 1]), columns, {}).tolist() == [0.1, -0.1]
    assert detector.weigh(seen([here], asked=[9]), columns, {}).tolist() == [-0.4]
    assert detector.weigh(seen([here], asked=[9], place=1), columns, {}).tolist() == [0.5], "another caller"
    assert detector.weigh(seen([here], asked=[500]), columns, {}).tolist() == [0.5], "faded"
    assert detector.weigh(seen([here], asked=[10**9]), columns, {}).tolist() == [0.5]


def prada(**changes: Any) -> BoundedPrada:
    return BoundedPrada(threshold=9.0, edges=(0.05,), nats=(-0.1, 0.2), **changes)


def test_distances_that_are_not_normal_are_told_from_normal_ones() -> None:
    rng = np.random.default_rng(0)

    def moments(d: FloatArray) -> FloatArray:
        powers: FloatArray = (d[:, None] ** np.arange(5)).sum(axis=0)[None]
        return powers

    assert statistic(moments(rng.normal(5, 1, 5_000)))[0] < 0.01
    assert statistic(moments(rng.exponential(size=5_000)))[0] > 0.5
    assert np.isfinite(statistic(np.zeros((1, 5)))).all()


def test_nothing_is_said_of_few_distances_and_far_rows_are_kept() -> None:
    detector = prada(slots=8)
    columns = memory(detector)
    rng = np.random.default_rng(1)
    said = detector.weigh(seen(rng.normal(size=(30, 4))), columns, {})
    assert (said == 0).all()
    assert 8 < columns["count"][0] < 30
    assert columns["count"][1] == 0
    later = np.concatenate([detector.weigh(seen(rng.normal(size=(30, 4))), columns, {}) for _ in range(4)])
    assert set(later[60:].tolist()) <= {-0.1, 0.2}


def test_rows_in_one_call_are_weighed_as_one_by_one() -> None:
    """More rows than are looked at at once; many of them stepped from one in the same call."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 4))
    x[50:] = x[rng.integers(0, 50, 150)] + 0.1 * rng.normal(size=(150, 4))
    place, detector = rng.integers(0, 2, 200), prada(slots=8)
    at_once, one_by_one = memory(detector), memory(detector)
    whole = detector.weigh(seen(x, place=place), at_once, {})
    single = [detector.weigh(seen(row[None], place=one), one_by_one, {}) for row, one in zip(x, place, strict=True)]
    np.testing.assert_array_equal(whole, np.concatenate(single))
    assert len(set(whole.tolist())) > 1
    for name, column in at_once.items():
        np.testing.assert_allclose(column, one_by_one[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (OodRate, {"edges": (0.8, 0.3), "nats": (0.0,) * 3}),
        (OodRate, {"edges": (0.3,), "nats": (0.0, math.nan)}),
        (OodCover, {"edges": ((0.3,), (0.3, 0.4)), "strange": (), "nats": (0.0,) * 2}),
        (OodCover, {"edges": ((0.3,),), "strange": (0.1,), "nats": (0.0,) * 3}),
        (Hardness, {"edges": ((0.3,),), "mean": (0.0,), "whiten": ((1.0,),), "far": (), "nats": (0.0,) * 2}),
        (Hardness, {"edges": ((0.3,),), "mean": (0.0,), "whiten": (), "far": ((1.0,),), "nats": (0.0,) * 4}),
        (BoundedPrada, {"edges": (), "nats": (0.0,), "slots": 1}),
    ],
)
def test_parameters_that_cannot_be_are_refused(kind: type[Detector], given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|must lie"):
        kind(threshold=9.0, **given)


def test_cells_that_cannot_be_are_refused() -> None:
    for changes in ({"window": 1}, {"new": (0.0,)}, {"asked": (5.0, 1.0)}):
        with pytest.raises(ValueError, match=r"expected|must lie"):
            cells(**changes)
    with pytest.raises(ValueError, match="expected 9 numbers"):
        cells().columns(9)
