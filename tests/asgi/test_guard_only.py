"""A guard without a model of its own, around a user's own model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.asgi.apps import Caller, own_model, starlette
from tests.models import LABELS, PIXELS, images
from tests.upstream.guards import CHAIN, entry_of, mlp_triton, seal_guard
from tests.upstream.triton import serving

from garrison.types import DefenseSpec


def guarded(folder: Path, chain: tuple[DefenseSpec, ...] = CHAIN) -> Caller:
    with serving(mlp_triton()) as server:  # gone before the app starts: nothing here asks it
        sealed = seal_guard(folder / "guard", entry_of(server.url), chain)
    (folder / "owner.pub").write_bytes(sealed.owner.public.pem)
    return Caller(starlette(bundle=sealed.path, trust=folder / "owner.pub", state=folder / "state", label="label"))


def test_honest_answers_pass_and_others_are_misinformed(tmp_path: Path) -> None:
    app = guarded(tmp_path)
    x = images(40)
    own = own_model(x)
    told = app.ask(json={"x": x.reshape(40, *PIXELS).tolist()})
    assert told.status_code == 200
    found = told.json()
    values = np.array(found["probabilities"])
    kept = own.max(axis=1) > 0.61
    assert 0 < kept.sum() < 40, "the input must show both"
    np.testing.assert_allclose(values[kept], own[kept], atol=1e-6)
    changed = own.max(axis=1) < 0.59
    assert (np.abs(values[changed] - own[changed]).max(axis=1) > 1e-3).all()
    assert found["label"] == [LABELS[k] for k in values.argmax(axis=1)]
    assert "secret" not in found


def test_bad_input_is_refused(tmp_path: Path) -> None:
    refused = guarded(tmp_path).ask(json={"x": (images(1) + 9).tolist()})
    assert (refused.status_code, refused.json()["code"]) == (400, "request.input")


@pytest.mark.parametrize("rows", [1, 3])
def test_its_budget_is_charged(tmp_path: Path, rows: int) -> None:
    budget = DefenseSpec(name="budget", parameters={"rows": 4})
    app = guarded(tmp_path, (CHAIN[0], budget, *CHAIN[1:]))
    body = {"x": images(rows).tolist()}
    codes = [app.ask(json=body).status_code for _ in range(5)]
    assert codes == [200] * (4 // rows) + [429] * (5 - 4 // rows)
