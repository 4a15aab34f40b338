"""Services as an attacker sees them: the release policy decides, in this process as over HTTP."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from tests.audit.worlds import World, sealed, served
from tests.models import BOUNDS, CLASSES, LABELS, PIXELS, SCORE, images

from garrison.attacks.oracle import MeteredOracle
from garrison.audit.targets import HttpTarget, ServiceTarget, answers_of, complete_top_k, guarded, spread, unguarded
from garrison.client import Client
from garrison.enclave.service import Service
from garrison.errors import GuardError, InputError, PreflightError
from garrison.protocol.oip_metadata import InputRange, ModelExtras, ModelMetadata, TensorMetadata
from garrison.types import DefenseSpec, Task


def test_the_guarded_target_answers_as_the_service_does(world: World) -> None:
    bundle = world.opened(world.bundle)
    target = guarded(bundle, world.key)
    x = images(20)
    released = Service(bundle, key=world.key).predict({"image": x}).outputs["probabilities"]
    answers = target.query(x)
    assert answers.probabilities is not None
    assert np.array_equal(answers.probabilities, released)
    assert (answers.labels == released.argmax(axis=1)).all()
    assert not answers.refused.any()


def test_facts_and_identity(world: World) -> None:
    target = guarded(world.opened(world.bundle), world.key)
    assert (target.facts.shape, target.facts.classes, target.facts.soft) == (PIXELS, CLASSES, True)
    assert target.facts.dtype == np.float32
    assert (float(target.facts.low.min()), float(target.facts.high.max())) == (0.0, 1.0)
    assert target.identity.labels == LABELS
    assert target.identity.overridden is False
    bare = unguarded(world.opened(world.bundle))
    assert bare.identity.manifest_digest == target.identity.manifest_digest
    assert bare.identity.guard_digest != target.identity.guard_digest
    assert bare.identity.overridden is True


def test_a_running_service_looks_the_same(world: World, tmp_path: Path) -> None:
    local = guarded(world.opened(world.bundle), world.key)
    with served(world, tmp_path) as url, Client(url) as client:
        remote = HttpTarget(client, url)
        x = images(40)
        here, there = local.query(x), remote.query(x)
    a, b = local.facts, remote.facts
    assert (a.shape, a.dtype, a.classes, a.soft) == (b.shape, b.dtype, b.classes, b.soft)
    assert np.array_equal(a.low, b.low)
    assert np.array_equal(a.high, b.high)
    for name in ("model", "version", "manifest_digest", "guard_digest", "labels"):
        assert getattr(local.identity, name) == getattr(remote.identity, name)
    assert (remote.identity.where, remote.identity.chain) == (url, None)
    assert here.probabilities is not None
    assert there.probabilities is not None
    np.testing.assert_allclose(here.probabilities, there.probabilities, atol=1e-6)


def test_bounds_are_compared_in_the_tensors_own_dtype() -> None:
    """0.1 in single precision lies above 0.1 in double precision; such a row is within its range all the same."""
    high = spread(0.1, np.inf, (2,), np.dtype(np.float32))
    assert (np.full(2, 0.1, np.float32) <= high).all()
    assert spread((1.0, 2.0, 3.0, 4.0), np.inf, (2, 2), np.dtype(np.int64)).tolist() == [[1, 2], [3, 4]]
    assert spread(None, np.inf, (2,), np.dtype(np.uint8)).tolist() == [np.inf, np.inf]


class Boasting(Client):
    """A service that says this of its model."""

    def __init__(self, told: ModelMetadata) -> None:
        super().__init__("http://127.0.0.1:1")
        self.told = told

    def metadata(self) -> ModelMetadata:
        return self.told


@pytest.mark.parametrize(
    "ranges",
    [
        {"x": InputRange(minimum=(0.0, 0.0), maximum=1.0, may_be_missing=False)},
        {"x": InputRange(minimum=0.0, maximum=(1.0,) * 5, may_be_missing=False)},
        {"x": InputRange(minimum=0.0, maximum=1.0, may_be_missing=(True,))},
        {},
    ],
)
def test_what_a_suspect_says_of_itself_may_be_anything(ranges: dict[str, InputRange]) -> None:
    extras = ModelExtras(
        version="1",
        task=Task.CLASSIFICATION,
        labels=(),
        ranges=ranges,
        manifest_digest="",
        guard_digest="",
        budget_rows=0,
        budget_period="ever",
    )
    shape = (-1, 3) if ranges else ()
    inputs, outputs = TensorMetadata("x", "FP32", (-1, 2, 2)), TensorMetadata("probabilities", "FP32", shape)
    told = ModelMetadata(name="m", inputs=(inputs,), outputs=(outputs,), garrison=extras)
    with Boasting(told) as client, pytest.raises(PreflightError, match=r"bounds for rows|without a shape"):
        HttpTarget(client, "http://127.0.0.1:1")


def test_taking_the_guard_off_is_logged_and_raw_scores_need_it(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        bare = unguarded(world.opened(world.bundle))
    assert "overridden" in caplog.text
    assert bare.raw(images(3)).shape == (3, CLASSES)
    with pytest.raises(GuardError):
        guarded(world.opened(world.bundle), world.key).raw(images(3))


def test_the_guard_changes_answers_and_the_reference_does_not(world: World) -> None:
    x = world.data.surrogate.x
    bundle = world.opened(world.bundle)
    own, defended = unguarded(bundle), guarded(bundle, world.key)
    raw = own.raw(x)
    assert np.array_equal(own.query(x).labels, raw.argmax(axis=1))
    doubtful = raw.max(axis=1) < 0.55
    assert doubtful.any()
    assert (
        defended.query(x).labels[doubtful] == raw.argmax(axis=1)[doubtful]
    ).mean() < 0.5  # one class in five by chance


@pytest.mark.parametrize(("release", "soft"), [("full", True), ("top-k", True), ("label", False)])
def test_another_release_policy_for_measurement(world: World, release: str, *, soft: bool) -> None:
    bundle = world.opened(world.bundle)
    target = guarded(bundle, world.key, release)  # type: ignore[arg-type]
    whole = guarded(bundle, world.key).query(images(9))
    answers = target.query(images(9))
    assert target.facts.soft is soft
    assert (answers.probabilities is not None) is soft
    assert (answers.labels == whole.labels).all()
    assert target.identity.overridden


def test_top_k_is_completed_to_a_whole_vector() -> None:
    found = complete_top_k(np.array([[2, 0]]), np.array([[0.6, 0.2]]), 4)
    assert found[0] == pytest.approx([0.2, 0.1, 0.6, 0.1])
    over = complete_top_k(np.array([[0]]), np.array([[1.0001]]), 3)
    assert (over >= 0).all()


def test_answers_of_other_forms_are_refused() -> None:
    nobody = np.zeros(2, dtype=np.bool_)
    with pytest.raises(PreflightError, match="over 5 classes"):
        answers_of({"probabilities": np.ones((2, 4))}, nobody, 5)
    with pytest.raises(PreflightError, match="expected probabilities"):
        answers_of({"other": np.ones((2, 5))}, nobody, 5)
    with pytest.raises(PreflightError, match="outside 0 to 4"):
        answers_of({"classes": np.array([[1], [5]])}, nobody, 5)
    scores = answers_of({"scores": np.array([[1.0, 3.0], [2.0, -1.0]])}, nobody, 2)
    assert scores.labels.tolist() == [1, 0]
    assert scores.probabilities is None


def test_refusals_are_data_to_the_meter(world: World, tmp_path: Path) -> None:
    refusing = DefenseSpec(name="reject-option", parameters={"tau": 0.6, "action": "refuse"})
    path = sealed(tmp_path / "b", world.owner, (BOUNDS, SCORE, refusing, DefenseSpec(name="release")))
    bundle = world.opened(path)
    target = guarded(bundle, None)
    x = images(30)
    expected = unguarded(bundle).raw(x).max(axis=1) < 0.6
    assert 0 < expected.sum() < 30
    assert (MeteredOracle(target, 100).query(x).refused == expected).all()


def test_a_row_out_of_range_is_the_callers_fault(world: World) -> None:
    with pytest.raises(InputError):
        ServiceTarget(Service(world.opened(world.bundle), key=world.key), overridden=False).query(images(2) + 3)
