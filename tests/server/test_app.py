"""The pages of the protocol, over HTTP, on real models."""

from __future__ import annotations

import base64
import json

import httpx
import numpy as np
import pytest
from tests.models import CLASSES, LABELS, PIXELS, images
from tests.serving import Bundles, Served, serve

from garrison import __version__
from garrison.enclave.service import Service
from garrison.errors import MalformedRequestError
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.protocol.statement import verify_answer
from garrison.server.questions import read_question


def get(served: Served, path: str) -> httpx.Response:
    return httpx.get(served.url + path)


def test_live_and_ready(served: Served) -> None:
    for path in ("live", "ready"):
        assert get(served, f"/v2/health/{path}").status_code == 200
    for path in ("mlp", "mlp/versions/1", "plain"):
        assert get(served, f"/v2/models/{path}/ready").status_code == 200


def test_ready_is_false_while_stopping_and_live_is_not(served: Served) -> None:
    served.assembly.app.stopping = True
    try:
        assert get(served, "/v2/health/ready").status_code == 503
        assert get(served, "/v2/models/mlp/ready").status_code == 503
        assert get(served, "/v2/health/live").status_code == 200
        index = httpx.post(f"{served.url}/v2/repository/index").json()
        assert {entry["state"] for entry in index} == {"UNAVAILABLE"}
    finally:
        served.assembly.app.stopping = False
    assert get(served, "/v2/health/ready").status_code == 200


def test_the_server_says_what_it_is(served: Served) -> None:
    found = get(served, "/v2").json()
    assert (found["name"], found["version"]) == ("garrison", __version__)
    assert "binary_tensor_data" in found["extensions"]
    assert found["garrison"] == {"isolation": "none", "guard_forms": ["graph"], "capabilities": {}, "gateway": ""}


def test_the_default_version_is_the_highest(served: Served) -> None:
    default, first, second = (get(served, f"/v2/models/mlp{v}").json() for v in ("", "/versions/1", "/versions/2"))
    assert default == second
    assert default["versions"] == ["1", "2"]
    assert (first["garrison"]["version"], second["garrison"]["version"]) == ("1", "2")
    assert first["garrison"]["manifest_digest"] != second["garrison"]["manifest_digest"]


def test_metadata_states_what_the_guard_asks_for(served: Served) -> None:
    found = get(served, "/v2/models/mlp").json()
    assert found["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, *PIXELS]}]
    assert found["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, CLASSES]}]
    assert found["garrison"]["labels"] == list(LABELS)
    assert found["garrison"]["ranges"] == {"image": {"minimum": 0.0, "maximum": 1.0, "may_be_missing": False}}
    plain = get(served, "/v2/models/plain").json()
    assert plain["outputs"] == [{"name": "classes", "datatype": "INT64", "shape": [-1, 1]}]


def test_the_index_lists_every_version(served: Served) -> None:
    found = httpx.post(f"{served.url}/v2/repository/index", content=b'{"ready": true}').json()
    assert [(e["name"], e["version"], e["state"]) for e in found] == [
        ("mlp", "1", "READY"),
        ("mlp", "2", "READY"),
        ("plain", "1", "READY"),
    ]


def test_answers_are_those_of_the_service_and_signed(served: Served, bundles: Bundles) -> None:
    keys = get(served, "/.well-known/garrison/keys").json()
    assert keys["attested"] is False
    x = images(5)
    for version in (1, 2):
        sealed = bundles.sealed[f"mlp-{version}"]
        expected = Service(sealed.verified(), key=sealed.key).predict({"image": x}).outputs["probabilities"]
        body, json_bytes = encode_request({"image": x})
        headers = {"inference-header-content-length": str(json_bytes), "garrison-nonce": "n-1"}
        response = httpx.post(f"{served.url}/v2/models/mlp/versions/{version}/infer", content=body, headers=headers)
        assert response.status_code == 200, response.text
        answer = decode_response(response.content, int(response.headers["inference-header-content-length"]))
        np.testing.assert_allclose(answer.outputs["probabilities"], expected, atol=1e-6)
        assert answer.version == str(version)
        (key,) = [k for k in keys["keys"] if (k["name"], k["version"]) == ("mlp", str(version))]
        proof = base64.b64decode(response.headers["garrison-proof"])
        statement = verify_answer(
            proof, bytes.fromhex(key["public_key"]), request=body, answer=response.content, nonce="n-1"
        )
        assert (statement.model, statement.guard) == (key["manifest_digest"], key["guard_digest"])


def test_json_is_answered_in_json(served: Served) -> None:
    body, json_bytes = encode_request({"image": images(2)}, binary=False, request_id="mine")
    assert json_bytes == -1
    response = httpx.post(f"{served.url}/v2/models/mlp/infer", content=body)
    assert response.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in response.headers
    found = response.json()
    assert found["id"] == "mine"
    assert found["outputs"][0]["shape"] == [2, CLASSES]


def test_uncertain_rows_are_named(bundles: Bundles, served: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    sealed = bundles.sealed["reserved"]
    x = images(50)
    expected = Service(sealed.verified()).predict({"image": x}).uncertain
    assert 0 < expected.sum() < 50
    with serve(bundles, "reserved", state=tmp_path_factory.mktemp("state")) as running:
        response = running.infer(x, "/v2/models/reserved/infer")
    head = json.loads(response.content[: int(response.headers["inference-header-content-length"])])
    rows = [int(row) for row in head["parameters"]["garrison_uncertain_rows"].split(",")]
    assert rows == np.flatnonzero(expected).tolist()


def test_a_page_may_be_asked_for_without_its_body(served: Served) -> None:
    response = httpx.head(f"{served.url}/v2/models/mlp")
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("length", ["", "x", "-1", "1.0", "1_0", "٣", "9" * 16])
def test_a_length_that_is_no_number_is_refused(served: Served, length: str) -> None:
    model = served.assembly.hosting.default("mlp")
    with pytest.raises(MalformedRequestError, match="must be a number of bytes"):
        read_question(model, "me", b"", length, None, served.assembly.config.limits)
