"""Evidently is an extra: named where it is missing, and given the features column by column where it is there."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tests.commands import fails, run, save

from garrison.api.drift import _columns
from garrison.errors import MissingExtraError
from garrison.hardening.data import read_npz


def test_without_evidently_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "evidently", None)
    data = str(save(tmp_path / "a.npz", x=np.zeros((200, 3))))
    words = ("drift", "compare", data, data, "--evidently")
    assert "garrison[evidently]" in fails(MissingExtraError, *words, "-o", str(tmp_path / "page.html"))
    assert "give -o PAGE.html" in run(*words).output


def test_features_become_columns(tmp_path: Path) -> None:
    data = save(tmp_path / "a.npz", x=np.arange(12.0).reshape(3, 2, 2), y=np.array([0, 1, 1]))
    found = _columns(read_npz(data))
    assert sorted(found) == ["x[0]", "x[1]", "x[2]", "x[3]", "y"]
    np.testing.assert_array_equal(found["x[3]"], [3, 7, 11])
