"""Whatever a server answers, a client raises an error of ours or has a prediction: nothing else gets out, and nothing takes long."""

from __future__ import annotations

import base64
import json
import random
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving import Bundles

from garrison.attest.evidence import Evidence
from garrison.attest.policy import Policy
from garrison.client.core import Core
from garrison.client.prediction import Prediction, join
from garrison.client.sealed import SealedChannel
from garrison.client.talk import Pause
from garrison.enclave.quotes.sim import SimQuoter
from garrison.enclave.service import Service
from garrison.errors import GarrisonError, ServiceError
from garrison.protocol.http_messages import Request, Response
from garrison.protocol.oip import ALL_JSON
from garrison.protocol.oip_client import decode_response
from garrison.protocol.sealed import read_answer
from garrison.protocol.statement import verify_answer

ROUNDS = 300
METADATA: dict[str, Any] = {
    "name": "m",
    "versions": ["1"],
    "platform": "garrison_onnx",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}],
    "garrison": {
        "version": "1",
        "task": "classification",
        "labels": ["a", "b"],
        "ranges": {"x": {"minimum": 0, "maximum": 1, "may_be_missing": False}},
        "manifest_digest": "0" * 64,
        "guard_digest": "0" * 64,
        "budget_rows": 5,
        "budget_period": "day",
        "work": {"bits": 1, "window_seconds": 60, "who": "alarmed"},
    },
}
ANSWER: dict[str, Any] = {
    "model_name": "m",
    "model_version": "1",
    "id": "7",
    "parameters": {"garrison_uncertain": "1"},
    "outputs": [{"name": "probabilities", "shape": [3, 2], "datatype": "FP32", "data": [0.5] * 6}],
}
BINARY = json.dumps(
    ANSWER | {"outputs": [ANSWER["outputs"][0] | {"data": None, "parameters": {"binary_data_size": 24}}]}
).encode()
TENSOR = np.full((3, 2), 0.5, np.float32).tobytes()
ODD = [
    None,
    True,
    0,
    -1,
    2,
    2**31,
    2**63,
    2**70,
    1e308,
    "",
    "x",
    "\x00",
    "ä" * 300,
    [],
    [1] * 100,
    [[1]],
    {},
    {"a": 1},
    [0],
    [3],
    [3, 2, 1],
    [-1],
    "FP64",
    "BOOL",
    "BYTES",
]


def odd_value(rng: random.Random, value: Any) -> Any:
    """A value somewhere within, changed, left out or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        changed = dict(value)
        if rng.random() < 0.1:
            del changed[key]
        else:
            changed[key] = odd_value(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return rng.choice([[*value[:at], odd_value(rng, value[at]), *value[at + 1 :]], value + value, value[:at]])
    return rng.choice(ODD)


def odd_bytes(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) or 1)
        match rng.randrange(3):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + rng.randint(1, 40)]
            case _:
                changed[at:at] = rng.choice([b"[" * 3000, b"0" * 30, b"\xff\xfe", b'{"', b"1e999"])
    return bytes(changed)


def predict(metadata: bytes, answer: Response, **more: Any) -> Prediction | GarrisonError:
    """What comes of one prediction; anything but our errors goes through."""
    core = Core(api_key="gk_a_b", model="m", version=None, attempts=1, verify=False)
    talk = core.predict(np.zeros((3, 2), np.float32), **more)
    waiting = [Response(200, {}, metadata), answer, answer, answer]
    try:
        step = next(talk)
        while True:
            step = talk.send(None if isinstance(step, Pause) else waiting.pop(0))
    except StopIteration as end:
        found: Prediction = end.value
        assert found.rows == 3
        join([found])
        return found
    except GarrisonError as error:
        return error


def plain(answer: object) -> Response:
    return Response(200, {}, json.dumps(answer).encode())


def test_the_control_what_is_right_is_taken() -> None:
    meta = json.dumps(METADATA).encode()
    binary = Response(200, {"inference-header-content-length": str(len(BINARY))}, BINARY + TENSOR)
    for answer in (plain(ANSWER), binary):
        assert isinstance(predict(meta, answer), Prediction)


@pytest.mark.parametrize("seed", range(2))
def test_answers_with_odd_values(seed: int) -> None:
    rng, meta = random.Random(seed), json.dumps(METADATA).encode()
    taken = [predict(meta, plain(odd_value(rng, ANSWER))) for _ in range(ROUNDS)]
    assert 0 < sum(isinstance(one, Prediction) for one in taken) < ROUNDS


@pytest.mark.parametrize("seed", range(2))
def test_answers_with_odd_bytes(seed: int) -> None:
    rng, meta = random.Random(seed), json.dumps(METADATA).encode()
    for _ in range(ROUNDS):
        head = odd_bytes(rng, BINARY) if rng.random() < 0.8 else BINARY
        length = rng.choice([str(len(head)), str(len(head)), str(rng.randrange(400)), "-1", "9" * 15, "²", "1.0"])
        tensor = rng.choice([TENSOR, TENSOR[:-1], TENSOR + b"x", b""])
        predict(meta, Response(200, {"inference-header-content-length": length}, head + tensor))
        predict(meta, Response(rng.choice([200, 400, 500]), {}, head))


@pytest.mark.parametrize("seed", range(2))
def test_odd_metadata(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(ROUNDS):
        predict(json.dumps(odd_value(rng, METADATA)).encode(), plain(ANSWER))
        predict(odd_bytes(rng, json.dumps(METADATA).encode()), plain(ANSWER))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=100),
    st.sampled_from(["FP32", "BOOL", "INT64", "FP16", "UINT8", "BF16"]),
    st.integers(0, 64),
)
def test_odd_shapes(shape: list[int], datatype: str, size: int) -> None:
    tensor: dict[str, Any] = {"name": "p", "shape": shape, "datatype": datatype}
    whole = json.dumps({"model_name": "m", "outputs": [tensor | {"parameters": {"binary_data_size": size}}]}).encode()
    listed = json.dumps({"model_name": "m", "outputs": [tensor | {"data": [1] * size}]}).encode()
    for body, length in ((whole + bytes(size), len(whole)), (listed, ALL_JSON)):
        try:
            found = decode_response(body, length)
        except ServiceError:
            continue
        assert found.outputs["p"].shape == tuple(shape)


def test_a_hundred_dimensions_are_a_typed_error() -> None:
    """Found in review: NumPy's own error came out."""
    tensor = {"name": "p", "shape": [1] * 100, "datatype": "FP32", "data": [1.0]}
    with pytest.raises(ServiceError, match="impossible shape"):
        decode_response(json.dumps({"model_name": "m", "outputs": [tensor]}).encode(), ALL_JSON)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_proofs_and_sealed_answers_that_are_none(data: bytes) -> None:
    for read in (
        lambda: verify_answer(data, bytes(32), request=b"", answer=b"", nonce="n"),
        lambda: read_answer(bytes(32), data),
    ):
        with pytest.raises(GarrisonError):
            read()


def test_the_answer_must_hold_what_was_asked_for() -> None:
    two = METADATA | {"outputs": [*METADATA["outputs"], {"name": "energy", "datatype": "FP32", "shape": [-1]}]}
    meta, answer = json.dumps(two).encode(), plain(ANSWER)
    assert isinstance(predict(meta, answer, outputs=("probabilities",)), Prediction)  # the control
    for asked in ((), ("energy",), ("probabilities", "energy")):
        found = predict(meta, answer, outputs=asked)
        assert isinstance(found, ServiceError)
        assert "lacks the output 'energy'" in str(found)
    assert isinstance(predict(meta, plain(ANSWER | {"outputs": []})), ServiceError)


def test_odd_evidence_is_refused_and_raises_nothing_else(bundles: Bundles) -> None:
    """What is taken all the same differs in nothing, or in what nobody vouches for."""
    service = Service(bundles.sealed["mlp-1"].verified(), key=bundles.sealed["mlp-1"].key, quoter=SimQuoter())
    rng, taken = random.Random(0), 0
    for _ in range(ROUNDS // 2):
        talk = SealedChannel(Policy(allow_simulated=True), api_key=None, attempts=1).attested(
            service.manifest.name, None
        )
        asked = next(talk)
        assert isinstance(asked, Request)
        nonce = base64.urlsafe_b64decode(parse_qs(urlsplit(asked.path).query)["nonce"][0] + "=")
        good = service.evidence(nonce, {"kept apart": ""})
        whole = msgspec.json.encode(good)
        odd = rng.choice([whole, odd_bytes(rng, whole), json.dumps(odd_value(rng, json.loads(whole))).encode()])
        try:
            talk.send(Response(200, {}, odd))
        except StopIteration:
            found = msgspec.json.decode(odd, type=Evidence)
            assert msgspec.structs.replace(found, capabilities=good.capabilities) == good
            taken += 1
        except GarrisonError:
            continue
    assert taken > ROUNDS // 10, "the control: what was not changed"
