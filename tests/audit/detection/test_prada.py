"""PRADA as published: what it sees, what it does not, and what it keeps."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from garrison.audit.detection.prada import prada

RNG = np.random.default_rng(0)
WIDTH = 40


def honest(rows: int) -> tuple[np.ndarray, np.ndarray]:
    top = RNG.integers(0, 4, rows)
    return RNG.normal(size=(rows, WIDTH)) + 4 * np.eye(4, WIDTH)[top], top


def test_honest_rows_do_not_ring_and_steps_do() -> None:
    x, top = honest(500)
    quiet = prada(x, top)
    assert quiet.alarm(0.90) is None
    assert 0.5 < quiet.kept / quiet.rows < 0.95, "it keeps most of what honest callers ask"
    source = RNG.integers(0, 100, 400)
    stepped = np.concatenate([x[:100], x[source] + 0.1 * np.sign(RNG.normal(size=(400, WIDTH)))])
    named = np.concatenate([top[:100], top[source]])
    loud = prada(stepped, named)
    first = loud.alarm(0.90)
    assert first is not None
    assert first < 300
    assert loud.kept < quiet.kept


def test_it_looks_every_ten_rows_once_there_are_a_hundred_distances() -> None:
    x, top = honest(150)
    found = prada(x, top)
    assert (found.looks % 10 == 0).all()
    assert found.looks[0] > 100
    assert prada(x[:90], top[:90]).looks.size == 0
    assert prada(x[:90], top[:90]).alarm(0.99) is None


def test_equal_rows_are_kept_once_a_class() -> None:
    found = prada(np.ones((30, 3)), np.zeros(30, dtype=np.int64))
    assert found.kept == 1
