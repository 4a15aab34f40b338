"""The story of a request, on a real sealed model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from tests.models import BOUNDS, CLASSES, PIXELS, RELEASE, SCORE, Sealed, images, misinform, seal_mlp

from garrison.enclave.backends import BACKENDS
from garrison.enclave.host import Enclave, Launch, launch
from garrison.enclave.service import Service
from garrison.errors import (
    BundleError,
    ConfigError,
    GuardError,
    InputError,
    IsolationError,
    KeyFileError,
    RefusedError,
    UnavailableError,
    UpstreamError,
)
from garrison.guard.override import UnsafeGuardOverride
from garrison.guard.pipeline import Progress
from garrison.protocol import work
from garrison.protocol.messages import Ask, Reply
from garrison.protocol.statement import verify_answer
from garrison.runtime.runner import Runner
from garrison.types import Array, Batch, DefenseSpec, Released

NOTHING_HELD_BACK = UnsafeGuardOverride((RELEASE,), "a test")


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    chain = (BOUNDS, DefenseSpec(name="budget", parameters={"rows": 1000}), SCORE, misinform(0.6), RELEASE)
    return seal_mlp(tmp_path_factory.mktemp("sealed") / "bundle", chain)


@pytest.fixture(scope="module")
def service(sealed: Sealed) -> Service:
    return Service(sealed.verified(), key=sealed.key)


def ask(x: Any, caller: str = "alice", remaining: int = -1, **more: Any) -> Ask:
    data = np.asarray(x)
    tensor = {"name": "image", "datatype": "FP32", "shape": list(data.shape), "data": data.ravel().tolist()}
    return Ask(caller, remaining, json.dumps({"inputs": [tensor], **more}).encode(), -1, "a nonce")


def test_a_proof_of_work_outlives_a_batch_that_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = (BOUNDS, DefenseSpec(name="proof-of-work", parameters={"bits": 2}), RELEASE)
    service = Service(seal_mlp(tmp_path / "bundle", chain).verified())
    one_by_one = service._guarded

    def guarded(batch: Batch) -> tuple[Progress, Released]:
        if batch.requests > 1:
            raise UpstreamError("the model's server answers single requests alone")
        return one_by_one(batch)

    monkeypatch.setattr(service, "_guarded", guarded)
    asks = []
    for caller in ("alice", "bob"):
        plain = ask(images(1), caller)
        proof = work.solve(service.public_key, caller, plain.body, rows=1, bits=2, when=int(time.time()))
        asks.append(structs.replace(plain, work=proof))
    assert [reply.code for reply in service.answer(asks)] == ["", ""]
    assert {reply.code for reply in service.answer(asks)} == {"request.work_required"}, "control: used up"


def probabilities(reply: Reply) -> Array:
    assert reply.code == "", reply.detail
    output = json.loads(reply.body)["outputs"][0]
    return np.array(output["data"]).reshape(output["shape"])


def test_a_request_is_answered_and_signed(service: Service) -> None:
    question = ask(images(3))
    (reply,) = service.answer([question])
    p = probabilities(reply)
    assert p.shape == (3, CLASSES)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    statement = verify_answer(
        reply.proof, service.public_key, request=question.body, answer=reply.body, nonce="a nonce"
    )
    assert (statement.model, statement.guard) == (service.manifest_digest, service.guard_digest)
    assert reply.outcome.code == "ok"
    assert reply.outcome.rows == 3


def test_confident_rows_get_f_and_doubtful_ones_get_something_else(sealed: Sealed, service: Service) -> None:
    x = images(200)
    f = Service(sealed.verified(), override=NOTHING_HELD_BACK).predict({"image": x}).outputs["probabilities"]
    served = service.predict({"image": x}).outputs["probabilities"]
    sure, doubtful = f.max(axis=1) > 0.62, f.max(axis=1) < 0.58
    assert sure.sum() > 10
    assert doubtful.sum() > 10
    np.testing.assert_allclose(served[sure], f[sure], atol=1e-6)
    assert np.abs(served[doubtful] - f[doubtful]).max(axis=1).min() > 1e-3
    assert np.mean(served[doubtful].argmax(axis=1) == f[doubtful].argmax(axis=1)) < 0.5  # one class in four by chance


def test_same_input_same_answer_in_another_batch_and_after_a_restart(sealed: Sealed, service: Service) -> None:
    x = images(60)
    whole = service.predict({"image": x}).outputs["probabilities"]
    restarted = Service(sealed.verified(), key=sealed.key)
    alone = np.concatenate([restarted.predict({"image": x[i : i + 1]}).outputs["probabilities"] for i in range(60)])
    np.testing.assert_allclose(whole, alone, atol=1e-5)


def test_bad_requests_harm_no_other(service: Service) -> None:
    x = images(2)
    out_of_range, nan = x.copy(), x.copy()
    out_of_range[1, 0, 3, 3] = 1.5
    nan[0, 0, 0, 0] = np.nan
    asks = [
        ask(x),
        Ask("mallory", -1, b"{", -1),
        ask(out_of_range),
        ask(nan),
        Ask("mallory", -1, b"", -1),
        ask(x, remaining=1),
        ask(np.zeros((1, 3, 3))),
        ask(x, outputs=[{"name": "nonsense"}]),
        ask(x[:1]),
    ]
    replies = service.answer(asks)
    codes = [r.code for r in replies]
    assert codes == [
        "",
        "request.malformed",
        "request.input",
        "request.malformed",
        "request.malformed",
        "request.budget_exhausted",
        "request.input",
        "request.input",
        "",
    ]
    alone = service.predict({"image": x}).outputs["probabilities"]
    np.testing.assert_allclose(probabilities(replies[0]), alone, atol=1e-5)
    np.testing.assert_allclose(probabilities(replies[8]), alone[:1], atol=1e-5)
    assert [r.outcome.rows for r in replies] == [2, 0, 0, 0, 0, 0, 0, 0, 1]
    for reply in replies[1:8]:
        assert not reply.body
        assert not reply.proof
        assert reply.detail
    for good, question in ((replies[0], asks[0]), (replies[8], asks[8])):
        verify_answer(good.proof, service.public_key, request=question.body, answer=good.body, nonce="a nonce")


def test_nothing_but_bad_requests(service: Service) -> None:
    assert [r.code for r in service.answer([ask(images(1) + 5), Ask("m", -1, b"[]", -1)])] == [
        "request.input",
        "request.malformed",
    ]
    assert service.answer([]) == []


def test_the_guards_refusal_tells_nothing(tmp_path: Path) -> None:
    chain = (BOUNDS, SCORE, DefenseSpec(name="reject-option", parameters={"tau": 2.0, "action": "refuse"}), RELEASE)
    sealed = seal_mlp(tmp_path / "bundle", chain)
    service = Service(sealed.verified())
    (reply,) = service.answer([ask(images(2))])
    assert (reply.code, reply.detail) == ("refused", "the service refuses this request")
    assert reply.outcome.code == "guard.out_of_distribution"
    assert reply.outcome.rows == 2  # it was computed, so it is charged
    with pytest.raises(RefusedError):
        service.predict({"image": images(2)})


def test_uncertain_rows_are_marked(tmp_path: Path) -> None:
    chain = (BOUNDS, SCORE, DefenseSpec(name="reject-option", parameters={"tau": 2.0}), RELEASE)
    (reply,) = Service(seal_mlp(tmp_path / "bundle", chain).verified()).answer([ask(images(2))])
    assert json.loads(reply.body)["parameters"] == {"garrison_uncertain_rows": "0,1"}
    np.testing.assert_allclose(probabilities(reply), 1 / CLASSES)


def test_shadow_is_counted_in_the_outcome(tmp_path: Path) -> None:
    shadow = DefenseSpec(name="adaptive-misinformation", shadow=True, parameters={"tau": 2.0})
    sealed = seal_mlp(tmp_path / "bundle", (BOUNDS, SCORE, shadow, RELEASE))
    bad = images(1) + 5
    first, _, last = Service(sealed.verified(), key=sealed.key).answer([ask(images(2)), ask(bad), ask(images(3))])
    assert first.outcome.shadow == {"adaptive-misinformation": 2}
    assert last.outcome.shadow == {"adaptive-misinformation": 3}
    assert first.outcome.replaced == 0


def test_replaced_rows_are_counted_by_request(tmp_path: Path) -> None:
    sealed = seal_mlp(tmp_path / "bundle", (BOUNDS, SCORE, misinform(2.0), RELEASE))
    replies = Service(sealed.verified(), key=sealed.key).answer([ask(images(2)), ask(images(1) + 5), ask(images(3))])
    assert [r.outcome.replaced for r in replies] == [2, 0, 3]


def test_a_failing_runtime_is_an_internal_error_and_the_service_stays_up(
    sealed: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(sealed.verified(), key=sealed.key)
    assert isinstance(service._runner, Runner)
    run = service._runner.guarded

    def fragile(inputs: dict[str, Array]) -> Any:
        if (inputs["image"][:, 0, 0, 0] == 0.25).any():
            raise RuntimeError("secret detail")
        return run(inputs)

    monkeypatch.setattr(service._runner, "guarded", fragile)
    poison = images(1)
    poison[0, 0, 0, 0] = 0.25
    replies = service.answer([ask(images(2)), ask(poison), ask(images(1))])
    assert [r.code for r in replies] == ["", "internal", ""]
    assert "secret detail" not in replies[1].detail


def test_keys(sealed: Sealed) -> None:
    with pytest.raises(GuardError, match="misinformation key"):
        Service(sealed.verified())
    with pytest.raises(KeyFileError, match="not the misinformation key"):
        Service(sealed.verified(), key=bytes(32))


def test_the_host_tightens_and_the_digest_tells(sealed: Sealed, service: Service) -> None:
    tightened = Service(sealed.verified(), key=sealed.key, tightened={"release": {"mode": "labels"}})
    assert tightened.guard_digest != service.guard_digest
    assert set(tightened.predict({"image": images(1)}).outputs) == {"classes"}
    with pytest.raises(GuardError):
        Service(sealed.verified(), key=sealed.key, tightened={"adaptive-misinformation": {"tau": 0.1}})


def test_raw_scores_need_the_override(sealed: Sealed, service: Service) -> None:
    with pytest.raises(GuardError, match="UnsafeGuardOverride"):
        service.raw({"image": images(1)})
    assert Service(sealed.verified(), override=NOTHING_HELD_BACK).raw({"image": images(1)}).values.shape == (1, CLASSES)


def test_predict_raises_what_a_client_would_get(service: Service) -> None:
    with pytest.raises(InputError, match="range"):
        service.predict({"image": images(1) - 2})


@pytest.mark.parametrize("isolation", sorted(BACKENDS))
def test_every_backend_keeps_the_contract(sealed: Sealed, isolation: str) -> None:
    try:
        enclave = launch(isolation, Launch(sealed.path, [sealed.owner.public], sealed.key, address="16:5005"))
    except (IsolationError, UnavailableError) as error:
        if isolation in {"none", "process"}:
            raise
        pytest.skip(f"{isolation} needs hardware; tests/enclave/backends/test_hardware.py has a fake one: {error}")
    assert isinstance(enclave, Enclave)
    assert enclave.card.isolation.startswith(isolation)
    assert enclave.ready
    assert enclave.card.outputs[0].shape == (CLASSES,)
    question = ask(images(2))
    (reply,) = enclave.call([question])
    verify_answer(reply.proof, enclave.card.public_key, request=question.body, answer=reply.body, nonce="a nonce")
    enclave.stop()


def test_a_backend_refuses_what_is_not_signed(sealed: Sealed, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown isolation"):
        launch("moat", Launch(sealed.path, [sealed.owner.public], sealed.key))
    with pytest.raises(BundleError):
        launch("none", Launch(sealed.path, [], sealed.key))


def test_shapes() -> None:
    assert images(2).shape == (2, *PIXELS)
