"""A gateway before a server that speaks as Triton does: answers, and what is refused before that server is asked."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from tests.models import BOUNDS, RELEASE, SCORE, Sealed, images, misinform, seal_mlp
from tests.serving import Served
from tests.upstream.guards import CHAIN, PATH, PATIENT, entry_of, gateway, infer, mlp_triton, seal_guard
from tests.upstream.triton import Triton, serving

from garrison.client import Client
from garrison.config import Config, ServerConfig
from garrison.enclave.service import Service
from garrison.errors import ConfigError, ManifestError, UpstreamError
from garrison.protocol.oip_client import encode_request
from garrison.protocol.statement import verify_answer
from garrison.server.root import assemble
from garrison.types import DefenseSpec

pytestmark = pytest.mark.usefixtures("honest")


def test_answers_are_those_of_the_whole_model_behind_the_same_guard(
    served: Served, sealed: Sealed, triton: Triton, tmp_path: Path
) -> None:
    x = images(20)
    whole = seal_mlp(tmp_path / "whole", CHAIN, own_network=True, owner=sealed.owner, name="guarded")
    expected = Service(whole.verified(), key=whole.key).predict({"image": x}).outputs["probabilities"]
    with Client(served.url) as client:
        found = client.predict(x).outputs["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    bare = triton.run(x)
    assert (np.abs(found - bare).max(axis=1) > 0.05).any(), "control: some rows are misinformed"
    assert sorted(triton.asked) == [4, 8, 8], "no more rows in one request than the server takes"


def test_tritonclient_works_unmodified(served: Served, triton: Triton) -> None:
    httpclient = pytest.importorskip("tritonclient.http")
    client = httpclient.InferenceServerClient(urlsplit(served.url).netloc)
    x = images(3)
    tensor = httpclient.InferInput("image", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    result = client.infer("guarded", [tensor], request_id="mine")
    assert result.get_response()["id"] == "mine"
    own = triton.run(x)
    sure = own.max(axis=1) > 0.8
    np.testing.assert_allclose(result.as_numpy("probabilities")[sure], own[sure], atol=1e-4)
    assert client.is_model_ready("guarded")
    client.close()


def test_requests_of_one_turn_go_upstream_together(served: Served, triton: Triton) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda k: infer(served.url, images(1, seed=k)).status_code, range(64)))
    assert found == [200] * 64
    assert sum(triton.asked) == 64
    assert len(triton.asked) < 64


@pytest.mark.parametrize(("most_rows", "extensions"), [(0, None), (8, [])])
def test_a_model_without_batches_and_a_server_without_binary_tensors(
    tmp_path: Path, most_rows: int, extensions: list[str] | None
) -> None:
    more: dict[str, Any] = {} if extensions is None else {"extensions": extensions}
    with serving(mlp_triton(most_rows=most_rows, **more)) as triton:
        entry = entry_of(triton.url, batched=most_rows > 0, most_rows=max(1, most_rows))
        sealed = seal_guard(tmp_path / "bundle", entry, (BOUNDS, SCORE, misinform(0.0), RELEASE))
        x = images(11)
        with gateway(sealed, triton.url, tmp_path) as served, Client(served.url) as client:
            found = client.predict(x).outputs["probabilities"]
        assert sorted(triton.asked) == ([3, 8] if most_rows else [1] * 11)
        batched = triton.run(x)
    np.testing.assert_allclose(found, batched, atol=1e-5)


def test_logits_become_probabilities(tmp_path: Path) -> None:
    with serving(mlp_triton(output="logits")) as triton:
        chain = (BOUNDS, DefenseSpec(name="energy"), misinform(-100.0), RELEASE)
        sealed = seal_guard(tmp_path / "bundle", entry_of(triton.url, gives="logits"), chain)
        with gateway(sealed, triton.url, tmp_path) as served, Client(served.url) as client:
            found = client.predict(images(4)).outputs["probabilities"]
        logits = triton.run(images(4))
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.log(found), logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), atol=1e-4)


def test_what_a_gateway_says_of_itself(served: Served, sealed: Sealed) -> None:
    server = httpx.get(f"{served.url}/v2").json()["garrison"]
    assert server["isolation"] == "none"
    assert "neither the parameters there nor privacy" in server["gateway"]
    model = httpx.get(f"{served.url}/v2/models/guarded").json()
    assert model["platform"] == "garrison_gateway"
    assert model["garrison"]["upstream"] == "digits, version 1"


def test_the_signed_statement_names_the_upstream(served: Served) -> None:
    body, json_bytes = encode_request({"image": images(1)})
    headers = {"inference-header-content-length": str(json_bytes), "garrison-nonce": "n"}
    response = httpx.post(served.url + PATH, content=body, headers=headers)
    (key,) = httpx.get(f"{served.url}/.well-known/garrison/keys").json()["keys"]
    proof = base64.b64decode(response.headers["garrison-proof"])
    public = bytes.fromhex(key["public_key"])
    statement = verify_answer(proof, public, request=body, answer=response.content, nonce="n")
    assert statement.upstream == "digits, version 1"


def test_no_sealed_request_and_no_evidence(served: Served) -> None:
    headers = {"content-type": "application/vnd.garrison.sealed"}
    assert httpx.get(f"{served.url}/.well-known/garrison/attestation?nonce={'A' * 43}").status_code == 404
    sealed = httpx.post(served.url + PATH, content=b"x" * 200, headers=headers)
    assert sealed.status_code in (400, 415)


def test_one_bad_row_among_good_ones(served: Served, triton: Triton) -> None:
    """The bad one is refused before the other server sees it; the others are answered."""

    def ask(k: int) -> int:
        return infer(served.url, images(1, seed=k) + (3.0 if k == 5 else 0.0)).status_code

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, range(32)))
    assert found == [400 if k == 5 else 200 for k in range(32)]
    assert sum(triton.asked) == 31


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 400), (b"{", 400), (b'{"inputs":[]}', 400), (b'{"inputs":[{"name":"image"}]}', 400)]
)
def test_requests_that_are_none_never_reach_the_other_server(
    served: Served, triton: Triton, body: bytes, status: int
) -> None:
    assert httpx.post(served.url + PATH, content=body).status_code == status
    assert triton.asked == []


def test_another_model_than_sealed_for_stops_the_start(sealed: Sealed, tmp_path: Path) -> None:
    with serving(mlp_triton(input="other")) as other, pytest.raises(UpstreamError, match="harden and seal again"):
        start(tmp_path, sealed, upstream=other.url, isolation="none")


def start(path: Path, sealed: Sealed, **server: Any) -> None:
    config = Config(server=ServerConfig(port=0, state=str(path / "state"), **server), limits=PATIENT)
    assemble(config, [sealed.path], [sealed.owner.public]).close()


def test_what_cannot_be_started(sealed: Sealed, triton: Triton, tmp_path: Path) -> None:
    whole = seal_mlp(tmp_path / "whole")
    with pytest.raises(ConfigError, match="--isolation none"):
        start(tmp_path, sealed, upstream=triton.url, isolation="process")
    with pytest.raises(ConfigError, match="garrison serve"):
        start(tmp_path, whole, upstream=triton.url, isolation="none")
    with pytest.raises(ManifestError, match="garrison gateway"):
        start(tmp_path, sealed, isolation="none")
    with pytest.raises(ConfigError, match="parameter-memory"):
        start(tmp_path, sealed, upstream=triton.url, isolation="none", parameter_memory_mib=1)
    with pytest.raises(ManifestError, match="garrison gateway"):
        Service(sealed.verified(), key=sealed.key)
