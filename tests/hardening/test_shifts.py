"""What honest callers do to rows, and rows as thieves ask them."""

from __future__ import annotations

import numpy as np

from garrison.hardening.shifts import MIXED, PLAIN, brighter, mirrored, moved, noisy, shifted
from garrison.hardening.strange import OUTLIERS, STEPPED, UNIFORM, strange_rows

RNG = np.random.default_rng(0)
PICTURES = RNG.random((40, 1, 16, 16), dtype=np.float32)
TABLE = RNG.normal(size=(60, 5)).astype(np.float32)


def test_pictures_are_mirrored_moved_and_lit() -> None:
    flipped = mirrored(PICTURES, np.random.default_rng(1))
    same = (flipped == PICTURES).all(axis=(1, 2, 3))
    assert 5 < same.sum() < 35
    assert (flipped[~same] == PICTURES[~same][..., ::-1]).all()
    lit = brighter(PICTURES, np.random.default_rng(1))
    assert lit.min() >= PICTURES.min()
    assert lit.max() <= PICTURES.max()
    there = moved(PICTURES, np.random.default_rng(1))
    for before, after in zip(PICTURES, there, strict=True):
        assert any(
            np.array_equal(
                after[:, max(d, 0) : 16 + min(d, 0), max(a, 0) : 16 + min(a, 0)],
                before[:, max(-d, 0) : 16 + min(-d, 0), max(-a, 0) : 16 + min(-a, 0)],
            )
            for d in (-3, -2, 0, 2, 3)
            for a in (-3, -2, 0, 2, 3)
            if (d, a) != (0, 0)
        )


def test_every_kind_holds_the_same_rows() -> None:
    kinds = shifted({"x": PICTURES}, np.random.default_rng(2))
    assert list(kinds) == [PLAIN, "flip", "move", "bright", MIXED]
    for kind in kinds.values():
        assert kind["x"].shape == PICTURES.shape
        assert kind["x"].dtype == PICTURES.dtype
    mixed = kinds[MIXED]["x"]
    assert all(any(np.array_equal(row, kind["x"][i]) for kind in kinds.values()) for i, row in enumerate(mixed))


def test_a_table_is_measured_a_little_otherwise() -> None:
    coded = TABLE.copy()
    coded[:, 0] = np.arange(60) % 3
    coded[0, 1] = np.nan
    found = noisy(coded, np.random.default_rng(3))
    assert np.array_equal(found[:, 0], coded[:, 0]), "codes are no measurements"
    assert np.isnan(found[0, 1])
    assert 0.01 < np.nanstd(found[:, 2] - coded[:, 2]) < 0.1
    assert set(shifted({"x": TABLE}, np.random.default_rng(3))) == {PLAIN, "noise", "replaced", MIXED}


def test_what_cannot_be_shifted_is_left_as_it_is() -> None:
    whole = TABLE.astype(np.int64)
    assert set(shifted({"x": whole}, RNG)) == {PLAIN}
    assert set(shifted({"a": TABLE, "b": TABLE}, RNG)) == {PLAIN}
    assert strange_rows({"x": whole}, 10, RNG) == {}
    assert strange_rows({"a": TABLE, "b": TABLE}, 10, RNG) == {}


def test_strange_rows_stay_in_range() -> None:
    for x in (PICTURES, TABLE):
        found = strange_rows({"x": x}, 24, np.random.default_rng(4))
        assert list(found) == [OUTLIERS, UNIFORM, STEPPED]
        for kind in (UNIFORM, STEPPED):
            rows = found[kind]["x"]
            assert rows.shape == (24, *x.shape[1:])
            assert rows.dtype == x.dtype
            assert rows.min() >= x.min()
            assert rows.max() <= x.max()
