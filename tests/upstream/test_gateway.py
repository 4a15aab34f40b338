"""A gateway before a server that speaks as Triton does: answers, refusals, and what happens when that server misbehaves."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from tests.models import BOUNDS, RELEASE, SCORE, Sealed, images, misinform, seal_mlp
from tests.serving import Served, budget
from tests.upstream.guards import CHAIN, QUICK, entry_of, gateway, mlp_triton, seal_guard
from tests.upstream.triton import HEADER, Triton, serving

from garrison.client import Client
from garrison.config import Config, ServerConfig
from garrison.enclave.service import Service
from garrison.errors import ConfigError, ManifestError, UnavailableError, UpstreamError
from garrison.limits import Limits
from garrison.protocol.messages import Ask
from garrison.protocol.oip_client import encode_request
from garrison.protocol.statement import verify_answer
from garrison.server.root import assemble
from garrison.types import Array, DefenseSpec

PATH = "/v2/models/guarded/infer"
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def triton() -> Iterator[Triton]:
    with serving(mlp_triton()) as found:
        yield found


@pytest.fixture(scope="module")
def sealed(triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_guard(tmp_path_factory.mktemp("guard") / "bundle", entry_of(triton.url))


@pytest.fixture(scope="module")
def served(sealed: Sealed, triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with gateway(sealed, triton.url, tmp_path_factory.mktemp("state")) as found:
        yield found


@pytest.fixture(autouse=True)
def honest(triton: Triton) -> Iterator[None]:
    triton.asked.clear()
    yield
    triton.change = None


def infer(url: str, x: Array, **headers: str) -> httpx.Response:
    body, json_bytes = encode_request({"image": x})
    return httpx.post(url + PATH, content=body, headers={"inference-header-content-length": str(json_bytes)} | headers)


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


def test_the_other_server_dislikes_one_request_among_many(served: Served, triton: Triton) -> None:
    """Its 400 hits that request alone, and is not passed on."""
    plain = triton.run

    def picky(x: Array) -> Array:
        if (x > 0.9999).all(axis=(1, 2, 3)).any():
            raise ValueError("secret: the model chokes on bright images")
        return plain(x)

    triton.run = picky
    try:
        found = bright_among_others(served.url)
    finally:
        triton.run = plain
    assert [response.status_code for response in found] == [502 if k == 3 else 200 for k in range(16)]
    assert "secret" not in found[3].text


def bright_among_others(url: str) -> list[httpx.Response]:
    bright: Array = np.ones((1, 1, 8, 8), np.float32)
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda k: infer(url, bright if k == 3 else images(1, seed=k)), range(16)))


def test_a_request_that_ends_the_other_server_s_connections(served: Served, triton: Triton) -> None:
    bright = np.ones(64, np.float32).tobytes()
    triton.drop = lambda body: bright in body
    try:
        found = bright_among_others(served.url)
    finally:
        triton.drop = None
    assert [response.status_code for response in found] == [502 if k == 3 else 200 for k in range(16)]


def rewritten(change: Callable[[dict[str, Any]], None]) -> Callable[[int, dict[str, str], bytes], Answer]:
    """An answer whose JSON part was changed."""

    def run(status: int, headers: dict[str, str], body: bytes) -> Answer:
        length = int(headers[HEADER])
        message = json.loads(body[:length])
        change(message)
        head = json.dumps(message).encode()
        return status, headers | {HEADER: str(len(head))}, head + body[length:]

    return run


def values(made: Callable[[Array], Array]) -> Callable[[int, dict[str, str], bytes], Answer]:
    """An answer whose numbers were changed."""

    def run(status: int, headers: dict[str, str], body: bytes) -> Answer:
        length = int(headers[HEADER])
        return status, headers, body[:length] + made(np.frombuffer(body[length:], np.float32).copy()).tobytes()

    return run


def entry(x: Array, place: int, value: float) -> Array:
    x[place] = value
    return x


def plain(status: int, body: bytes, **headers: str) -> Callable[[int, dict[str, str], bytes], Answer]:
    return lambda *_: (status, headers, body)


LIES: dict[str, tuple[Callable[[int, dict[str, str], bytes], Answer], int]] = {
    "a shape": (rewritten(lambda m: m["outputs"][0].update(shape=[5, 1])), 502),
    "fewer classes": (rewritten(lambda m: m["outputs"][0].update(shape=[1, 4])), 502),
    "a datatype": (rewritten(lambda m: m["outputs"][0].update(datatype="INT32")), 502),
    "an unknown datatype": (rewritten(lambda m: m["outputs"][0].update(datatype="BYTES")), 502),
    "no output": (rewritten(lambda m: m.update(outputs=[])), 502),
    "another output": (rewritten(lambda m: m["outputs"][0].update(name="secret")), 502),
    "another model": (rewritten(lambda m: m.update(model_name="secret")), 502),
    "another request's id": (rewritten(lambda m: m.update(id="garrison-0")), 502),
    "no id": (rewritten(lambda m: m.pop("id")), 502),
    "a negative size": (rewritten(lambda m: m["outputs"][0].update(shape=[-1, -5])), 502),
    "NaN": (values(lambda x: entry(x, 1, float("nan"))), 502),
    "infinity": (values(lambda x: entry(x, 1, float("inf"))), 502),
    "a negative probability": (values(lambda x: entry(x, 1, -0.5)), 502),
    "no distribution": (values(lambda x: x * 2), 502),
    "too few bytes": (values(lambda x: x[:-1]), 502),
    "too many bytes": (values(lambda x: np.concatenate([x, x])), 502),
    "a length of the JSON part that lies": (lambda s, h, b: (s, h | {HEADER: "99999"}, b), 502),
    "a length that is none": (lambda s, h, b: (s, h | {HEADER: "secret"}, b), 502),
    "not JSON": (plain(200, b"<html>secret</html>"), 502),
    "a page of an error": (plain(500, b"secret: traceback"), 502),
    "bad request": (plain(400, b'{"error":"secret"}'), 502),
    "not allowed": (plain(401, b'{"error":"secret"}'), 502),
    "gone": (plain(404, b'{"error":"secret"}'), 502),
    "elsewhere": (plain(302, b"", Location="http://secret/"), 502),
    "packed": (plain(200, b"\x1f\x8bsecret", **{"Content-Encoding": "gzip"}), 502),
    "busy": (plain(503, b'{"error":"secret"}'), 503),
    "too many requests": (plain(429, b'{"error":"secret"}'), 503),
    "a gateway of its own": (plain(502, b"secret"), 503),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_lies_is_used_for_nothing(served: Served, triton: Triton, lie: str) -> None:
    triton.change, status = LIES[lie]
    response = infer(served.url, images(1))
    assert response.status_code == status
    assert response.json()["code"] == {502: "upstream", 503: "unavailable"}[status]
    assert ("retry-after" in response.headers) == (status == 503)
    assert "secret" not in response.text
    assert "secret" not in str(response.headers)
    triton.change = None
    assert infer(served.url, images(1)).status_code == 200, "control: an honest answer is used"


def test_an_answer_that_is_too_long(sealed: Sealed, triton: Triton, tmp_path: Path) -> None:
    triton.change = plain(200, b"a" * 200_000)
    with gateway(sealed, triton.url, tmp_path, Limits(upstream_bytes=100_000)) as served:
        assert infer(served.url, images(1)).status_code == 502


def test_a_server_that_does_not_answer(sealed: Sealed, triton: Triton, tmp_path: Path) -> None:
    """The deadline holds, and the gateway goes on answering meanwhile."""

    asked, done = threading.Event(), threading.Event()

    def slow(*answer: Any) -> Any:
        asked.set()
        done.wait(30)
        return answer

    with gateway(sealed, triton.url, tmp_path, Limits(upstream_seconds=2.0)) as served:
        triton.change = slow
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(infer, served.url, images(1))
            assert asked.wait(10)
            assert httpx.get(f"{served.url}/v2/health/live").status_code == 200
            assert not waiting.done(), "the loop waited for the other server no longer than a moment"
            response = waiting.result()
            done.set()
        assert response.status_code == 503
        assert "retry-after" in response.headers
        triton.change = None
        deadline = time.monotonic() + 5
        while infer(served.url, images(1)).status_code != 200:
            assert time.monotonic() < deadline


def test_an_answer_that_takes_longer_than_a_moment_is_not_asked_for_twice(
    sealed: Sealed, triton: Triton, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def late(*answer: Any) -> Any:
        asked.append(answer)
        time.sleep(0.1)  # twenty times as long as the loop waits
        return answer

    x = images(3)
    with gateway(sealed, triton.url, tmp_path) as served:
        quick = infer(served.url, x)
        triton.change = late
        slow = infer(served.url, x)
        triton.change = None
        assert len(asked) == 1
        assert (slow.status_code, slow.content) == (200, quick.content)
        assert infer(served.url, images(2)).status_code == 200, "the next question gets its own answer"


def test_down_at_start_up_later_and_gone_again(sealed: Sealed, triton: Triton, tmp_path: Path) -> None:
    port = urlsplit(triton.url).port or 0
    with serving(mlp_triton()) as other:
        free = urlsplit(other.url).port or 0
    assert free != port
    url = f"http://127.0.0.1:{free}"
    with gateway(sealed, url, tmp_path) as served:
        assert httpx.get(f"{served.url}/v2/health/ready").status_code == 503
        response = infer(served.url, images(1))
        assert (response.status_code, "retry-after" in response.headers) == (503, True)
        with serving(mlp_triton(), free):
            deadline = time.monotonic() + 8
            while httpx.get(f"{served.url}/v2/health/ready").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert infer(served.url, images(1)).status_code == 200
        with serving(mlp_triton(input="other"), free):
            changed = infer(served.url, images(1))
            assert changed.status_code in (502, 503), "another model at the same address is not answered for"
            assert infer(served.url, images(1)).status_code == 502


def test_another_model_than_sealed_for_stops_the_start(sealed: Sealed, tmp_path: Path) -> None:
    with serving(mlp_triton(input="other")) as other, pytest.raises(UpstreamError, match="harden and seal again"):
        start(tmp_path, sealed, upstream=other.url, isolation="none")


def test_budgets_count_what_was_answered_alone(triton: Triton, tmp_path: Path) -> None:
    chain = (BOUNDS, budget(5), SCORE, misinform(0.6), RELEASE)
    sealed = seal_guard(tmp_path / "bundle", entry_of(triton.url), chain)
    with gateway(sealed, triton.url, tmp_path / "state") as served:
        triton.change = plain(500, b"")
        assert [infer(served.url, images(2)).status_code for _ in range(4)] == [502] * 4
        triton.change = None
        assert [infer(served.url, images(2)).status_code for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 400), (b"{", 400), (b'{"inputs":[]}', 400), (b'{"inputs":[{"name":"image"}]}', 400)]
)
def test_requests_that_are_none_never_reach_the_other_server(
    served: Served, triton: Triton, body: bytes, status: int
) -> None:
    assert httpx.post(served.url + PATH, content=body).status_code == status
    assert triton.asked == []


def start(path: Path, sealed: Sealed, **server: Any) -> None:
    config = Config(server=ServerConfig(port=0, state=str(path / "state"), **server), limits=QUICK)
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


def test_a_stopped_scorer_asks_no_more(sealed: Sealed, triton: Triton, tmp_path: Path) -> None:
    with gateway(sealed, triton.url, tmp_path) as served:
        (enclave,) = served.assembly.enclaves
    body, json_bytes = encode_request({"image": images(1)})
    with pytest.raises(UnavailableError):
        enclave.call([Ask("c", -1, body, json_bytes)])
