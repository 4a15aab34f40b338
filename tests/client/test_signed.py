"""Answers signed in the form of HTTP, through a proxy on a real port that tampers with them; and the client that does not check, as the control."""

from __future__ import annotations

import base64
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from tests.client.tampering import Change, Exchange, Tampering, tampering
from tests.models import images
from tests.serving import Bundles, Served, serve

from garrison.client import AsyncClient, Client
from garrison.client.signed import HttpSignatures
from garrison.config import ServerConfig
from garrison.errors import ConfigError, GarrisonError, MalformedRequestError, ProofError
from garrison.protocol.http_messages import Response
from garrison.protocol.http_signature import content_digest
from garrison.protocol.oip_client import encode_request
from garrison.protocol.oip_metadata import KeySet, ModelKey
from garrison.server.signing import Signatures, signatures_of

SECRET = bytes(range(32))
X, Y = images(2), images(2, seed=5)


@pytest.fixture(scope="module")
def running(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An enclave's worth of service without isolation; its budget is big enough for this file."""
    folder = tmp_path_factory.mktemp("signed")
    (folder / "secret").touch(0o600)
    (folder / "secret").write_bytes(base64.b64encode(SECRET))
    with serve(bundles, "mlp-1", state=folder, signature_secret=str(folder / "secret")) as served:
        yield served


@pytest.fixture
def proxy(running: Served) -> Iterator[Tampering]:
    with tampering(running.url) as found:
        yield found


@pytest.fixture(params=[None, SECRET], ids=["ed25519", "hmac"])
def secret(request: pytest.FixtureRequest) -> bytes | None:
    found: bytes | None = request.param
    return found


@pytest.fixture(params=[None, pytest.param(SECRET, marks=pytest.mark.slow)], ids=["ed25519", "hmac"])
def either(request: pytest.FixtureRequest) -> bytes | None:
    """As `secret`; the second one where there is time."""
    found: bytes | None = request.param
    return found


def client(url: str, secret: bytes | None = None) -> Client:
    return Client(url, signatures="rfc9421", signature_secret=secret)


def test_a_signed_answer_is_the_services(proxy: Tampering, secret: bytes | None) -> None:
    with client(proxy.url, secret) as signed, Client(proxy.url) as plain:
        for binary in (True, False):
            found = signed.predict(X, binary=binary)
            assert found.proved
            np.testing.assert_allclose(found.outputs["probabilities"], plain.predict(X).outputs["probabilities"])
    headers = proxy.seen[0].headers
    assert {"signature", "signature-input", "content-digest", "garrison-statement", "garrison-proof"} <= headers.keys()
    assert not {"signature", "content-digest"} & proxy.seen[1].headers.keys(), "nobody asked for one"


def other_class(found: Exchange) -> bytes:
    """An answer's body with the first row's probabilities turned round: still a good answer, and another one."""
    length = int(found.headers["inference-header-content-length"])
    values = np.frombuffer(found.body[length:], np.float32).reshape(len(X), -1)
    return found.body[:length] + np.ascontiguousarray(values[:, ::-1]).tobytes()


def changed_body(found: Exchange) -> Exchange:
    return dataclasses.replace(found, body=other_class(found))


def changed_body_and_digest(found: Exchange) -> Exchange:
    body = other_class(found)
    return dataclasses.replace(found, body=body, headers=found.headers | {"content-digest": content_digest(body)})


def truncated(found: Exchange) -> Exchange:
    return dataclasses.replace(found, body=found.body[:-4])


def without(*names: str) -> Change:
    def change(found: Exchange) -> Exchange:
        return dataclasses.replace(found, headers={k: v for k, v in found.headers.items() if k not in names})

    return change


def with_header(name: str, value: str) -> Change:
    return lambda found: dataclasses.replace(found, headers=found.headers | {name: value})


def covering_less(found: Exchange) -> Exchange:
    """The signature is that of the service, and what it is said to cover is less."""
    listed = found.headers["signature-input"].replace(' "garrison-statement"', "")
    return dataclasses.replace(found, headers=found.headers | {"signature-input": listed})


def later(found: Exchange) -> Exchange:
    listed = found.headers["signature-input"].replace("created=1", "created=2")
    return dataclasses.replace(found, headers=found.headers | {"signature-input": listed})


TAMPERED: dict[str, Change] = {
    "changed body": changed_body,
    "changed body and digest": changed_body_and_digest,
    "truncated": truncated,
    "stripped signature": without("signature", "signature-input"),
    "stripped all": without("signature", "signature-input", "content-digest", "garrison-statement"),
    "another type": with_header("content-type", "application/json"),
    "a length that was not there": with_header("inference-header-content-length", "7"),
    "another statement": with_header("garrison-statement", "request=:AA==:"),
    "another signature": with_header("signature", f"garrison=:{base64.b64encode(bytes(64)).decode()}:"),
    "covering less": covering_less,
    "another time": later,
    "another label": lambda found: dataclasses.replace(
        found,
        headers=found.headers
        | {name: found.headers[name].replace("garrison=", "other=", 1) for name in ("signature", "signature-input")},
    ),
}


def key_of(served: Served) -> ModelKey:
    document = httpx.get(f"{served.url}/.well-known/garrison/keys").content
    return msgspec.json.decode(document, type=KeySet).keys[0]


def ask(
    url: str, signatures: HttpSignatures, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = X
) -> tuple[Response, bytes]:
    """One request by hand, so that no other proof is looked at."""
    body, json_bytes = encode_request({"image": x})
    headers = {"inference-header-content-length": str(json_bytes), "garrison-nonce": "n"}
    found = httpx.post(url + PATH, content=body, headers=headers | signatures.headers(body, "n"))
    return Response(found.status_code, found.headers, found.content), body


PATH = "/v2/models/mlp/infer"


@pytest.mark.parametrize("tampered", TAMPERED)
def test_what_was_tampered_with_is_refused(
    proxy: Tampering, running: Served, tampered: str, either: bytes | None
) -> None:
    signatures, key = HttpSignatures(either), key_of(running)
    good, body = ask(proxy.url, signatures)
    signatures.check(good, body, PATH, "n", key)  # the control: as it came
    proxy.change = TAMPERED[tampered]
    bad, body = ask(proxy.url, signatures)
    with pytest.raises(ProofError):
        signatures.check(bad, body, PATH, "n", key)
    with client(proxy.url, either) as checking, pytest.raises(GarrisonError):
        checking.predict(X)


def test_the_control_a_client_that_does_not_check_takes_another_answer(proxy: Tampering) -> None:
    with Client(proxy.url, verify=False) as trusting:
        honest = trusting.predict(X).outputs["probabilities"]
        proxy.change = changed_body_and_digest
        np.testing.assert_array_equal(trusting.predict(X).outputs["probabilities"], honest[:, ::-1])


def test_a_replayed_answer_is_refused(proxy: Tampering, running: Served, either: bytes | None) -> None:
    """To the very same question; only the nonce differs."""
    with client(proxy.url, either) as checking:
        checking.predict(X)
        first = proxy.seen[0]
        proxy.change = lambda _: first
        with pytest.raises(ProofError, match="nonce"):
            checking.predict(X)
    with Client(proxy.url, verify=False) as trusting:
        assert trusting.predict(Y).rows == len(X), "control: the old answer to another question is taken"


def test_swapped_answers_are_refused(proxy: Tampering, either: bytes | None) -> None:
    """Two clients ask at once and get each other's answers."""
    meeting, lock = threading.Barrier(2, timeout=60), threading.Lock()
    waiting: list[Exchange] = []

    def swap(found: Exchange) -> Exchange:
        with lock:
            waiting.append(found)
        meeting.wait()
        return next(one for one in waiting if one is not found)

    def both(make: Callable[[], Client]) -> list[object]:
        waiting.clear()
        results: list[object] = []

        def one(x: object) -> None:
            with make() as asking:
                asking.metadata()
                try:
                    results.append(asking.predict(x).outputs["probabilities"])  # type: ignore[arg-type]
                except GarrisonError as error:
                    results.append(error)

        threads = [threading.Thread(target=one, args=(x,)) for x in (X, Y)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    proxy.change = swap
    assert all(isinstance(found, ProofError) for found in both(lambda: client(proxy.url, either)))
    assert not any(isinstance(f, ProofError) for f in both(lambda: Client(proxy.url, verify=False))), "the control"


def test_an_answer_to_another_question_is_refused(proxy: Tampering, running: Served, secret: bytes | None) -> None:
    """The proxy asks something else in the client's name; the service signs its answer to that."""
    signatures, key = HttpSignatures(secret), key_of(running)
    other, _ = encode_request({"image": Y})
    proxy.before = lambda _: other
    refused, _ = ask(proxy.url, signatures)
    assert (refused.status, msgspec.json.decode(refused.body)["code"]) == (400, "request.malformed"), "by its digest"
    sent: list[Exchange] = []
    proxy.before = None
    honest, _ = ask(proxy.url, signatures, Y)
    sent.extend(proxy.seen)
    body, _ = encode_request({"image": X})
    with pytest.raises(ProofError):
        signatures.check(honest, body, PATH, "n", key)


def test_the_path_belongs_to_it(running: Served) -> None:
    signatures, key = HttpSignatures(), key_of(running)
    found, body = ask(running.url, signatures)
    with pytest.raises(ProofError):
        signatures.check(found, body, "/v2/models/other/infer", "n", key)


def test_another_key_another_model_another_guard(running: Served) -> None:
    signatures, key = HttpSignatures(), key_of(running)
    found, body = ask(running.url, signatures)
    for wrong in ({"public_key": "00" * 32}, {"public_key": "zz"}, {"manifest_digest": "00"}, {"guard_digest": "00"}):
        with pytest.raises(ProofError):
            signatures.check(found, body, PATH, "n", msgspec.structs.replace(key, **wrong))
    with pytest.raises(ProofError, match=r"alg|keyid"):
        HttpSignatures(SECRET).check(found, body, PATH, "n", key)


def test_a_server_may_sign_unasked(bundles: Bundles, tmp_path: Path) -> None:
    with serve(bundles, "mlp-1", state=tmp_path, signatures="rfc9421") as served:
        found = served.infer(X)
        assert found.headers["signature-input"].startswith('garrison=("@status" "content-type" "content-digest"')
        assert found.headers["content-digest"] == content_digest(found.content)
        assert "signature" not in served.infer(X * 99).headers, "an error is signed by nobody"
        with Client(served.url) as plain:
            assert plain.predict(X).proved
        refused = served.infer(X, **{"accept-signature": 'a=("content-digest");alg="hmac-sha256"'})
        assert (refused.status_code, refused.json()["code"]) == (400, "request.malformed")


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"content-digest": content_digest(b"other")}, "content-digest"),
        ({"content-digest": "!"}, "content-digest"),
        ({"accept-signature": 'a=("x-nothing")'}, "accept-signature"),
        ({"accept-signature": 'a=("content-digest");nonce="1"', "garrison-nonce": "2"}, "another nonce"),
        ({"accept-signature": f'a=("content-digest");nonce="{"n" * 300}"'}, "garrison-nonce"),
    ],
)
def test_what_cannot_be_signed_is_told(running: Served, headers: dict[str, str], says: str) -> None:
    refused = running.infer(X, **headers)
    assert refused.status_code in {400, 413}
    assert says in refused.json()["error"]


def test_the_asynchronous_client_too(proxy: Tampering) -> None:
    import asyncio

    async def main() -> bool:
        async with AsyncClient(proxy.url, signatures="rfc9421") as checking:
            assert (await checking.predict(X)).proved
            proxy.change = TAMPERED["changed body"]
            with pytest.raises(ProofError):
                await checking.predict(X)
        return True

    assert asyncio.run(main())


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1"
    wrong: list[dict[str, object]] = [
        {"signatures": "rfc1"},
        {"signature_secret": SECRET},
        {"signatures": "rfc9421", "signature_secret": b"short"},
        {"signatures": "rfc9421", "verify": False},
        {"signatures": "rfc9421", "sealed": True},
    ]
    for options in wrong:
        with pytest.raises(ConfigError):
            Client(url, **options)  # type: ignore[arg-type]
    (tmp_path / "secret").touch(0o600)
    for content in (b"", b"c2hvcnQ=", b"!!"):
        (tmp_path / "secret").write_bytes(content)
        with pytest.raises(ConfigError, match="signature_secret"):
            signatures_of(ServerConfig(signature_secret=str(tmp_path / "secret")))
    with pytest.raises(ConfigError, match="signature_secret"):
        signatures_of(ServerConfig(signature_secret=str(tmp_path / "none")))
    with pytest.raises(MalformedRequestError):
        Signatures().form('a=("content-digest");alg="hmac-sha256"', None, PATH, b"")
