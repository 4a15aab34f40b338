"""Sealed requests and evidence over HTTP: the same port, the same paths, and nothing for the host to read."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from tests.models import BOUNDS, RELEASE, SCORE, Sealed, images, misinform, seal_mlp
from tests.serving import Served, budget, serve
from tests.simulated import Simulated, serve_simulated
from tests.stalls import PATIENT_SECONDS, wait_until

from garrison.attest.evidence import Evidence
from garrison.crypto.owner import OwnerKey
from garrison.limits import Limits
from garrison.protocol.http_status import STATUS
from garrison.protocol.oip_client import encode_request
from garrison.protocol.sealed import CONTENT_TYPE, RequestHead, read_answer, seal_request
from garrison.server.auth import add_key

KEY = bytes(range(32))
NONCE = base64.urlsafe_b64encode(bytes(range(220, 252))).decode()
ATTESTATION = "/.well-known/garrison/attestation"
INFER = "/v2/models/mlp/infer"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sealed]:
    folder, owner = tmp_path_factory.mktemp("bundles"), OwnerKey.generate()
    return {
        "mlp": seal_mlp(folder / "mlp", (BOUNDS, SCORE, misinform(0.6), RELEASE), owner=owner),
        "strict": seal_mlp(folder / "strict", (BOUNDS, RELEASE), owner=owner, name="strict", require_sealed=True),
        "metered": seal_mlp(folder / "metered", (BOUNDS, budget(20), RELEASE), owner=owner, name="metered"),
    }


@pytest.fixture(scope="module")
def running(sealed: dict[str, Sealed], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_simulated(*sealed.values(), state=tmp_path_factory.mktemp("state")) as (served, _):
        yield served


def evidence(served: Served, model: str = "mlp", nonce: str = NONCE, **headers: str) -> Evidence:
    response = httpx.get(f"{served.url}{ATTESTATION}?nonce={nonce}&model={model}", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return msgspec.json.decode(response.content, type=Evidence)


def envelope(found: Evidence, rows: int = 2, caller: str = "") -> bytes:
    body, json_bytes = encode_request({"image": images(rows)})
    head = RequestHead(caller, json_bytes, "n", KEY, int(time.time()))
    return seal_request(found.keys.suite, found.keys.hpke, found.keys.epoch, head, body)


def post(served: Served, content: bytes, path: str = INFER, kind: str = CONTENT_TYPE, **headers: str) -> httpx.Response:
    return httpx.post(served.url + path, content=content, headers={"content-type": kind} | headers)


def test_a_sealed_answer_has_the_same_type_and_no_other_header(running: Served) -> None:
    response = post(running, envelope(evidence(running)))
    assert (response.status_code, response.headers["content-type"]) == (200, CONTENT_TYPE)
    assert not [name for name in response.headers if name.startswith(("garrison", "inference"))]
    head, _ = read_answer(KEY, response.content)
    assert head.code == ""


@pytest.mark.parametrize("kind", [CONTENT_TYPE.upper(), f"{CONTENT_TYPE}; q=1"])
def test_the_content_type_may_be_written_in_other_ways(running: Served, kind: str) -> None:
    assert post(running, envelope(evidence(running)), kind=kind).headers["content-type"] == CONTENT_TYPE


def test_a_version_may_be_named(running: Served) -> None:
    response = post(running, envelope(evidence(running)), "/v2/models/mlp/versions/1/infer")
    assert read_answer(KEY, response.content)[0].code == ""


def test_a_refusal_looks_like_an_answer(running: Served) -> None:
    found = evidence(running)
    good = post(running, envelope(found))
    refused = post(running, envelope(found, caller="mallory"))
    assert read_answer(KEY, refused.content)[0].code == "request.sealed"
    assert (good.status_code, len(good.content)) == (refused.status_code, len(refused.content))
    assert dict(good.headers).keys() == dict(refused.headers).keys()


def test_what_does_not_open_is_told_in_the_open(running: Served) -> None:
    found = evidence(running)
    once = envelope(found)
    assert post(running, once).status_code == 200
    stale = msgspec.structs.replace(found.keys, epoch=9)
    met = {
        "request.replayed": post(running, once),
        "request.stale_key": post(running, envelope(msgspec.structs.replace(found, keys=stale))),
        "request.stale_session": post(running, b"GSM1" + bytes(2000)),
        "request.sealed": post(running, b"no envelope, but long enough"),
        "request.sealing_required": running.infer(path="/v2/models/strict/infer"),
    }
    for code, response in met.items():
        assert (response.status_code, response.json()["code"]) == (STATUS[code], code)
        assert response.json()["error"]
    wrong = post(running, envelope(found), **{"inference-header-content-length": "5"})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "request.malformed")


def test_the_owners_demand_leaves_the_sealed_way_open(running: Served) -> None:
    response = post(running, envelope(evidence(running, "strict")), "/v2/models/strict/infer")
    assert read_answer(KEY, response.content)[0].code == ""


def test_sealed_rows_are_charged(running: Served) -> None:
    found = evidence(running, "metered")

    def ask(rows: int) -> str:
        response = post(running, envelope(found, rows), "/v2/models/metered/infer")
        return read_answer(KEY, response.content)[0].code

    assert [ask(12), ask(12), ask(8), ask(1)] == ["", "request.budget_exhausted", "", "request.budget_exhausted"]


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("", 400, "nonce"),
        ("nonce=", 400, "43 characters"),
        ("nonce=AAAA&model=mlp", 400, "43 characters"),
        (f"nonce={NONCE}A&model=mlp", 400, "43 characters"),
        (f"nonce={'+' * 43}&model=mlp", 400, "43 characters"),
        (f"nonce={NONCE}&nonce={NONCE}", 400, "once"),
        (f"nonce={NONCE}&model=mlp&x=1", 400, "once"),
        ("&".join(f"x{k}=1" for k in range(50)), 400, "parameters"),
        (f"nonce={NONCE}", 404, "3 models"),
        (f"nonce={NONCE}&model=nope", 404, "unknown model"),
        (f"nonce={NONCE}&model=mlp&version=9", 404, "unknown version"),
        (f"nonce={NONCE}&model=a/b/c", 404, "unknown model"),
    ],
)
def test_wrong_challenges(running: Served, query: str, status: int, says: str) -> None:
    response = httpx.get(f"{running.url}{ATTESTATION}?{query}")
    assert response.status_code == status
    assert says in response.json()["error"]


def test_evidence_is_for_the_model_and_nonce_that_were_named(running: Served, sealed: dict[str, Sealed]) -> None:
    for name in ("mlp", "strict"):
        found = evidence(running, name, NONCE.rstrip("="))
        assert (found.model, found.nonce) == (name, bytes(range(220, 252)))
        assert found.manifest == (sealed[name].path / "manifest.json").read_bytes()
    assert httpx.post(f"{running.url}{ATTESTATION}?nonce={NONCE}&model=mlp").status_code == 405


def test_keys_are_needed_where_they_are_used_and_the_caller_is_bound(sealed: dict[str, Sealed], tmp_path: Path) -> None:
    keys = {name: add_key(tmp_path / "keys.json", name) for name in ("alice", "bob")}
    with serve_simulated(sealed["mlp"], state=tmp_path / "s", keys=str(tmp_path / "keys.json")) as (served, _):
        assert httpx.get(f"{served.url}{ATTESTATION}?nonce={NONCE}").status_code == 401
        headers = {name: {"authorization": f"Bearer {key}"} for name, key in keys.items()}
        found = evidence(served, **headers["alice"])

        def ask(inside: str, outside: str) -> str:
            return read_answer(KEY, post(served, envelope(found, 1, inside), **headers[outside]).content)[0].code

        assert ask("alice", "alice") == ""
        assert ask("bob", "bob") == ""
        assert ask("alice", "bob") == "request.sealed"
        assert ask("", "bob") == "request.sealed"


def test_without_an_enclave_there_is_no_evidence(sealed: dict[str, Sealed], bundles: object, tmp_path: Path) -> None:
    with serve(bundles, "mlp-1", state=tmp_path) as plain:  # type: ignore[arg-type]  # the fixture of tests.serving
        response = httpx.get(f"{plain.url}{ATTESTATION}?nonce={NONCE}")
        assert (response.status_code, response.json()["code"]) == (404, "request.not_found")
        refused = post(plain, b"GSR2" + bytes(2000))
        assert (refused.status_code, refused.json()["code"]) == (400, "request.sealed")


def test_the_server_process_holds_no_plaintext(sealed: dict[str, Sealed], tmp_path: Path) -> None:
    canary = bytes(range(100, 132))
    x = images(2)
    x.view(np.uint8).reshape(-1)[:32] = np.frombuffer(canary, np.uint8)
    with serve_simulated(sealed["mlp"], state=tmp_path) as (served, (enclave,)):
        found = evidence(served)
        body, json_bytes = encode_request({"image": x})
        head = RequestHead("", json_bytes, "n", KEY, int(time.time()))
        post(served, seal_request(found.keys.suite, found.keys.hpke, found.keys.epoch, head, body))
        served.infer(x)
        (hidden, shown) = enclave.asks
        assert hidden.sealed
        assert not shown.sealed
        assert canary in shown.body  # the control: the same input in the open
        for part in (hidden.body, enclave.replies[0].body):
            assert canary not in part
        assert enclave.replies[0].outcome.code == "sealed"


def test_evidence_waits_for_batches_and_batches_for_evidence(sealed: dict[str, Sealed], tmp_path: Path) -> None:
    """The enclave raises where it is called twice at once; so does this test then."""
    with serve_simulated(sealed["mlp"], state=tmp_path) as (served, (enclave,)):
        found = evidence(served)
        slow(enclave, 0.003)
        envelopes = [envelope(found) for _ in range(40)]
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(post, served, one) for one in envelopes]
            shown = [pool.submit(evidence, served) for _ in range(20)]
            assert all(read_answer(KEY, one.result().content)[0].code == "" for one in answers)
            assert len({one.result().nonce for one in shown}) == 1
        assert enclave.attested == 21


def slow(enclave: Simulated, seconds: float) -> None:
    call, evidence_of = enclave.service.answer, enclave.service.evidence

    def answer(asks: object) -> object:
        time.sleep(seconds)
        return call(asks)  # type: ignore[arg-type]

    def show(nonce: bytes, capabilities: dict[str, str]) -> Evidence:
        time.sleep(seconds)
        return evidence_of(nonce, capabilities)

    enclave.service.answer = answer  # type: ignore[assignment,method-assign]
    enclave.service.evidence = show  # type: ignore[assignment,method-assign]


def test_too_many_requests_for_evidence_are_told_to_come_again(sealed: dict[str, Sealed], tmp_path: Path) -> None:
    """Of one caller half of them: for whoever comes anew there is a place left."""
    limits = Limits(evidence_requests=4)
    with serve_simulated(sealed["mlp"], state=tmp_path, limits=limits) as (served, (enclave,)):
        gate = threading.Event()
        show = enclave.service.evidence

        def held(nonce: bytes, capabilities: dict[str, str]) -> Evidence:
            assert gate.wait(PATIENT_SECONDS)
            return show(nonce, capabilities)

        enclave.service.evidence = held  # type: ignore[assignment,method-assign]

        def ask(address: str) -> httpx.Response:
            with httpx.Client(transport=httpx.HTTPTransport(local_address=address), timeout=PATIENT_SECONDS) as client:
                return client.get(f"{served.url}{ATTESTATION}?nonce={NONCE}")

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, "127.0.0.1") for _ in range(6)]
            wait_until(lambda: sum(one.done() for one in asked) == 3)
            others = [pool.submit(ask, "127.0.0.2") for _ in range(2)]
            wait_until(lambda: sum(one.done() for one in others) == 1)
            assert httpx.get(f"{served.url}/v2/health/live").status_code == 200  # the loop is free meanwhile
            again = ask("127.0.0.1")
            gate.set()
            assert sorted(one.result().status_code for one in asked) == [200, 200, 200, 503, 503, 503]
            assert sorted(one.result().status_code for one in others) == [200, 503]
        assert (again.status_code, again.headers["retry-after"]) == (503, "1")
        assert again.json() == {
            "error": "2 of your requests for evidence are waiting already, which is your share; try again",
            "code": "unavailable",
        }
        assert served.infer().status_code == 200
