"""Values fall into the bins that their reference was made with, however odd they are."""

from __future__ import annotations

import numpy as np
import pytest
from tests.guard.drifting import streams

from garrison.guard.drifting.columns import Column, asked_values, layout_of, looks_of, names_of, source_of, summarise
from garrison.hardening.drift import fit_column

SOME = Column(name="a", edges=(0.0, 1.0, 2.0), shares=(0.25, 0.25, 0.25, 0.25, 0.0), mean=1.0, scale=1.0)
OTHER = Column(name="b", edges=(5.0,), shares=(0.5, 0.5, 0.0))


def test_bins_are_those_of_a_search_and_missing_values_have_their_own() -> None:
    layout = layout_of([SOME, OTHER])
    x = np.array([[-1, 4], [0, 5], [0.5, 6], [1, np.nan], [2, np.inf], [np.nan, -np.inf]], np.float32)
    np.testing.assert_array_equal(layout.codes(x), [[0, 1, 1, 2, 3, 4], [5, 6, 6, 7, 6, 5]])
    many = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    searched = [
        np.searchsorted(np.array(c.edges, np.float32), many[:, k], "right") for k, c in enumerate((SOME, OTHER))
    ]
    np.testing.assert_array_equal(layout.codes(many) - layout.start[:, None], searched)


def test_scores_are_cut_off_and_missing_values_count_nothing() -> None:
    z = layout_of([SOME, OTHER]).scores(np.array([[3, 3], [100, 3], [np.nan, 3]], np.float32))
    np.testing.assert_array_equal(z, [[2, 0], [4, 0], [0, 0]])


def test_a_fitted_column_has_the_shares_of_its_rows() -> None:
    x = np.r_[np.zeros(900), np.arange(1, 101)].astype(np.float32)  # nine in ten are one value
    x[:10] = np.nan
    column = fit_column("x", x, answer=False)
    counts = np.bincount(layout_of([column]).codes(x[:, None])[0], minlength=len(column.shares))
    np.testing.assert_allclose(column.shares, counts / 1000, atol=1e-6)
    assert column.shares[-1] == pytest.approx(0.01)
    assert 0.88 < max(column.shares) < 0.95
    constant = fit_column("x", np.ones(50, np.float32), answer=False)
    assert constant.scale == 0
    assert fit_column("x", np.full(50, np.nan, np.float32), answer=False).shares == (0.0, 1.0)


@pytest.mark.parametrize(
    "change",
    [{"edges": (0.0, 0.0, 1.0)}, {"shares": (1.0,)}, {"shares": (0.5, 0.5, 0.5, 0.5, 0.0)}, {"scale": float("nan")}],
)
def test_a_reference_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    fields = {"name": "a", "edges": SOME.edges, "shares": SOME.shares}
    with pytest.raises(ValueError, match="drift"):
        Column(**{**fields, **change})  # type: ignore[arg-type]


def test_a_large_input_is_watched_by_its_projection_and_two_summaries() -> None:
    facts = streams.facts(100)
    assert source_of(facts) == "projection"
    assert source_of(streams.facts(64)) == "features"
    x = np.random.default_rng(0).normal(size=(5, 100)).astype(np.float32)
    x[0, 0] = np.nan
    seen = np.ones((5, 4), np.float32)
    out = np.zeros((5, 6), np.float32)
    asked_values(looks_of(facts), {"x": x}, seen, out)
    summarise(looks_of(facts), out, 4)
    known = np.nan_to_num(x)
    np.testing.assert_allclose(out[:, 4:], np.stack([known.mean(axis=1), known.std(axis=1)], axis=1), rtol=1e-4)
    assert len(names_of(facts, "projection", 4)) == 6 + 2
