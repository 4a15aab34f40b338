"""Reference and thresholds from honest rows; chains that get them; and two sets of rows offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.commands import as_json, fails, run, save
from tests.drifting import dark, seal_drifting
from tests.guard.drifting import streams
from tests.models import RELEASE, SCORE, images, seal_mlp

from garrison.errors import CalibrationError, GuardError
from garrison.guard.drifting.columns import layout_of
from garrison.guard.drifting.sketch import KINDS
from garrison.hardening.drift import FEWEST_ROWS, fit_drift, simulate, with_drift
from garrison.types import DefenseSpec


def test_thresholds_lie_above_every_honest_stretch() -> None:
    fitted = streams.fitted()
    x = streams.rows(4_000, seed=1)
    values = np.concatenate([x, np.zeros((len(x), 2), np.float32)], axis=1)
    y = streams.answers(x)
    values[:, -2], values[:, -1] = y.argmax(axis=1), y.max(axis=1)
    peaks = simulate(layout_of(fitted.drift.columns), values, 2_000.0, np.random.default_rng(5), streams=2)
    for k, kind in enumerate(KINDS):
        assert 0 < peaks[:, k].max() < fitted.drift.thresholds[kind]


def test_too_few_rows_make_no_reference() -> None:
    x = streams.rows(FEWEST_ROWS - 1, seed=1)
    with pytest.raises(CalibrationError, match="2500 held-out rows"):
        fit_drift(streams.facts(), {"x": x}, streams.answers(x))
    assert with_drift((RELEASE,), streams.facts(), {"x": x}, streams.answers(x)) == ((RELEASE,), {})


def test_a_chain_gets_it_at_its_end_and_a_projection_where_it_is_needed() -> None:
    x = streams.rows(FEWEST_ROWS, seed=1)
    chain = (SCORE, RELEASE)
    small, metrics = with_drift(chain, streams.facts(), {"x": x}, streams.answers(x))
    assert [spec.name for spec in small] == ["max-probability", "release", "drift"]
    assert metrics["drift_rows"] == FEWEST_ROWS
    wide = np.random.default_rng(0).random((FEWEST_ROWS, 100), dtype=np.float32)
    large, _ = with_drift(chain, streams.facts(100), {"x": wide}, streams.answers(wide))
    assert [spec.name for spec in large] == ["projection", "max-probability", "release", "drift"]
    watched = (DefenseSpec(name="projection", parameters={"width": 4}), *chain)
    mine, _ = with_drift(watched, streams.facts(100), {"x": wide}, streams.answers(wide))
    assert len(mine[-1].parameters["columns"]) == 4 + 2 + 2


def test_rows_against_a_bundle_and_against_rows(tmp_path: Path) -> None:
    sealed = seal_drifting(tmp_path / "BUNDLE")
    (tmp_path / "owner.pub").write_bytes(sealed.owner.public.pem)
    words = ("drift", "check", str(sealed.path))
    trust = ("--trust", str(tmp_path / "owner.pub"))
    same, other = save(tmp_path / "a.npz", x=images(600, 8)), save(tmp_path / "b.npz", x=dark(600))
    assert as_json(*words, str(same), *trust)["shifted"] == []
    found = as_json(*words, str(other), *trust)
    assert len(found["shifted"]) >= 64
    assert found["reference_rows"] == 2_500
    assert run(*words, str(other), *trust, "--strict").exit_code == 1
    assert "shifted: 0 of" in run(*words, str(same), *trust, "--strict").stdout
    assert as_json("drift", "compare", str(same), str(save(tmp_path / "c.npz", x=images(600, 9))))["shifted"] == []
    assert as_json("drift", "compare", str(same), str(other))["shifted"]
    few = save(tmp_path / "few.npz", x=images(99))
    assert "at least 100 rows" in fails(CalibrationError, *words, str(few), *trust)
    assert "same features" in fails(
        CalibrationError, "drift", "compare", str(same), str(save(tmp_path / "d.npz", x=np.zeros((200, 3))))
    )


def test_labels_that_only_one_file_has_are_left_out(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(300, 2)), np.arange(300) % 3
    plain, labelled = save(tmp_path / "plain.npz", x=x), save(tmp_path / "labelled.npz", x=x, y=y)
    for old, new, unpaired in (
        (labelled, plain, "reference"),
        (plain, labelled, "now"),
        (plain, plain, ""),
        (labelled, labelled, ""),
    ):
        found = as_json("drift", "compare", str(old), str(new))
        assert found["unpaired"] == unpaired
        assert ("y" in found["chance"]) is (old == new == labelled)
        told = run("drift", "compare", str(old), str(new)).stderr
        assert (f"y is left out: only {labelled} has it" in told) is bool(unpaired)


def test_arrays_are_compared_by_name_in_whatever_order_they_lie(tmp_path: Path) -> None:
    low, high = np.random.default_rng(0).uniform((0, 9), (1, 10), size=(300, 2)).T
    one, other = save(tmp_path / "a.npz", a=low, b=high), save(tmp_path / "b.npz", b=high, a=low)
    assert as_json("drift", "compare", str(one), str(other))["shifted"] == []


def test_a_bundle_without_a_reference_says_so(tmp_path: Path) -> None:
    sealed = seal_mlp(tmp_path / "BUNDLE")
    (tmp_path / "owner.pub").write_bytes(sealed.owner.public.pem)
    data = save(tmp_path / "a.npz", x=images(200))
    words = ("drift", "check", str(sealed.path), str(data), "--trust", str(tmp_path / "owner.pub"))
    assert "holds no reference" in fails(GuardError, *words)
