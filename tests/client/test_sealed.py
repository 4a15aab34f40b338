"""The sealing client against a real server whose enclave is simulated, and against hosts that lie."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.client.test_core import play
from tests.models import BOUNDS, LABELS, RELEASE, SCORE, Sealed, images, misinform, seal_mlp
from tests.serving import Bundles, Served, budget, serve
from tests.simulated import Simulated, serve_simulated

from garrison.attest.evidence import Evidence
from garrison.attest.policy import Policy
from garrison.attest.report import Report
from garrison.client import AsyncClient, Client
from garrison.client.names import caller_of
from garrison.client.sealed import SealedChannel
from garrison.client.talk import Talk
from garrison.crypto.owner import OwnerKey
from garrison.enclave.service import Service
from garrison.errors import (
    AttestationError,
    BudgetExhaustedError,
    ConfigError,
    InputError,
    ProofError,
    SealedRequestError,
    SealingRequiredError,
    ServiceError,
    StaleKeyError,
    UnavailableError,
)
from garrison.limits import Limits
from garrison.protocol.http_messages import Request, Response
from garrison.protocol.messages import Ask
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.server.auth import add_key

SIMULATED = Policy(allow_simulated=True)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sealed]:
    folder, owner = tmp_path_factory.mktemp("bundles"), OwnerKey.generate()
    chain = (BOUNDS, SCORE, misinform(0.6), RELEASE)
    return {
        "mlp": seal_mlp(folder / "mlp", chain, owner=owner),
        "mlp-2": seal_mlp(folder / "mlp-2", chain, owner=owner, version=2, seed=5),
        "strict": seal_mlp(folder / "strict", (BOUNDS, RELEASE), owner=owner, name="strict", require_sealed=True),
        "metered": seal_mlp(folder / "metered", (BOUNDS, budget(20), RELEASE), owner=owner, name="metered"),
    }


@pytest.fixture
def running(sealed: dict[str, Sealed], tmp_path: Path) -> Iterator[tuple[Served, Simulated]]:
    with serve_simulated(sealed["mlp"], state=tmp_path) as (served, (enclave,)):
        yield served, enclave


@pytest.fixture(scope="module")
def several(sealed: dict[str, Sealed], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_simulated(*sealed.values(), state=tmp_path_factory.mktemp("state")) as (served, _):
        yield served


def test_it_gets_what_the_service_answers(running: tuple[Served, Simulated], sealed: dict[str, Sealed]) -> None:
    served, enclave = running
    x = images(70)
    expected = Service(sealed["mlp"].verified(), key=sealed["mlp"].key).predict({"image": x}).outputs["probabilities"]
    with Client(served.url, sealed=True, allow_simulated=True) as client:
        for binary in (True, False):
            found = client.predict(x, rows_a_request=32, binary=binary)
            assert found.probabilities is not None
            np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
            assert (found.rows, found.proved, found.attested, found.labels) == (70, True, True, LABELS)
        attested = client.attest()
    assert (attested.report.technology, attested.model.name) == ("sim", "mlp")
    assert enclave.attested == 1  # once for all of it
    assert all(ask.sealed for ask in enclave.asks)
    with Client(served.url) as plain:
        assert not plain.predict(x).attested


def test_an_enclave_in_a_process_of_its_own(bundles: Bundles, tmp_path: Path) -> None:
    x = images(5)
    with serve(bundles, "mlp-1", state=tmp_path, isolation="process") as served:
        with Client(served.url, sealed=True) as strict, pytest.raises(AttestationError, match="sim"):
            strict.predict(x)
        with Client(served.url, sealed=True, allow_simulated=True) as client, Client(served.url) as plain:
            found = client.predict(x)
            assert found.attested
            np.testing.assert_array_equal(found.outputs["probabilities"], plain.predict(x).outputs["probabilities"])


def test_the_asynchronous_client_too(running: tuple[Served, Simulated]) -> None:
    served, _ = running

    async def main() -> list[Any]:
        async with AsyncClient(served.url, sealed=True, policy=SIMULATED) as client:
            assert (await client.attest()).model.version == 1
            return list(await asyncio.gather(*(client.predict(images(k)) for k in range(1, 7))))

    assert [found.rows for found in asyncio.run(main()) if found.attested] == [1, 2, 3, 4, 5, 6]


def test_the_default_policy_refuses_simulation_and_sends_nothing(running: tuple[Served, Simulated]) -> None:
    served, enclave = running
    with Client(served.url, sealed=True) as client, pytest.raises(AttestationError, match="sim") as caught:
        client.predict(images(1))
    assert isinstance(caught.value.report, Report)
    assert not caught.value.report.passed
    assert [step.name for step in caught.value.report.failures] == ["technology"]
    assert enclave.asks == []


def test_options_that_contradict() -> None:
    url = "http://127.0.0.1:1"
    for wrong in ({"policy": Policy()}, {"allow_simulated": True}, {"sealed": True, "verify": False}):
        with pytest.raises(ConfigError):
            Client(url, **wrong)
    with Client(url) as client, pytest.raises(ConfigError, match="sealed=True"):
        client.attest()


def test_versions_and_rollback(several: Served) -> None:
    for version, answers in ((None, "2"), (1, "1"), (2, "2")):
        with Client(several.url, model="mlp", version=version, sealed=True, policy=SIMULATED) as client:
            assert client.predict(images(1)).model_version == answers
    newest = msgspec.structs.replace(SIMULATED, least_version=2)
    with (
        Client(several.url, model="mlp", version=1, sealed=True, policy=newest) as client,
        pytest.raises(AttestationError, match="version"),
    ):
        client.predict(images(1))


def test_an_owner_who_demands_seals(several: Served) -> None:
    with Client(several.url, model="strict") as client, pytest.raises(SealingRequiredError, match="garrison connect"):
        client.predict(images(1))
    with Client(several.url, model="strict", sealed=True, allow_simulated=True) as client:
        assert client.predict(images(3)).rows == 3


def test_refusals_come_back_as_their_types(several: Served) -> None:
    with Client(several.url, model="metered", sealed=True, allow_simulated=True) as client:
        with pytest.raises(InputError, match="outside the range"):
            client.predict(images(1) * 9)
        assert client.predict(images(15)).rows == 15
        with pytest.raises(BudgetExhaustedError):
            client.predict(images(15))


def test_a_restarted_enclave_is_attested_anew_by_itself(running: tuple[Served, Simulated]) -> None:
    served, enclave = running
    with Client(served.url, sealed=True, allow_simulated=True) as client:
        first = client.predict(images(2)), client.attest().keys
        enclave.restart()
        second = client.predict(images(2)), client.attest().keys
        np.testing.assert_array_equal(first[0].classes, second[0].classes)
        assert first[1].signing != second[1].signing
        assert enclave.attested == 2


def test_another_version_in_the_middle_is_not_taken_for_the_one_it_began_with(
    running: tuple[Served, Simulated], sealed: dict[str, Sealed]
) -> None:
    """A host may start an older or newer model of the owner's at any time; its classes may mean something else."""
    served, enclave = running
    with Client(served.url, model="mlp", sealed=True, allow_simulated=True) as client:
        assert client.predict(images(3)).model_version == "1"
        enclave._sealed = sealed["mlp-2"]
        enclave.restart()
        with pytest.raises(UnavailableError, match="another version"):
            client.predict(images(3))
        assert client.predict(images(3)).model_version == "2", "control: a prediction that begins with it is answered"


def test_it_tries_that_once(running: tuple[Served, Simulated]) -> None:
    served, enclave = running
    show = enclave.evidence

    def always_another(nonce: bytes) -> Evidence:
        found = show(nonce)
        enclave.restart()
        return found

    enclave.evidence = always_another  # type: ignore[method-assign]
    with Client(served.url, sealed=True, allow_simulated=True) as client, pytest.raises(StaleKeyError):
        client.predict(images(1))
    assert enclave.attested == 2


def test_keys_that_end_and_sets_that_are_full_cost_a_client_nothing(sealed: dict[str, Sealed], tmp_path: Path) -> None:
    limits = Limits(
        key_offered_seconds=0.5, key_grace_seconds=6.5, replay_entries=3, key_least_seconds=0.01, session_requests=2
    )
    with (
        serve_simulated(sealed["mlp"], state=tmp_path, limits=limits) as (served, (enclave,)),
        Client(served.url, sealed=True, allow_simulated=True) as client,
    ):
        for _ in range(25):  # nine first requests, of which one key opens three
            assert client.predict(images(1)).attested
            time.sleep(0.02)
        assert 3 <= enclave.attested <= 6
        before = client.attest().keys
        time.sleep(2.5)  # within five seconds of its end a key is not used any more
        client.predict(images(1))
        assert client.attest().keys.epoch > before.epoch


def test_the_callers_name_goes_inside(sealed: dict[str, Sealed], tmp_path: Path) -> None:
    keys = {name: add_key(tmp_path / "keys.json", name) for name in ("alice", "bob.b-1")}
    with serve_simulated(sealed["mlp"], state=tmp_path / "s", keys=str(tmp_path / "keys.json")) as (served, (enclave,)):
        for name, key in keys.items():
            with Client(served.url, api_key=key, sealed=True, allow_simulated=True) as client:
                assert client.predict(images(1)).attested
            assert enclave.asks[-1].caller == name
        with Client(served.url, api_key=keys["alice"], sealed=True, allow_simulated=True) as client:
            client.attest()
            client._http.headers["authorization"] = ""
            channel = client._core._channel
            assert channel is not None
            client.predict(images(1))
            channel._headers = {"authorization": f"Bearer {keys['bob.b-1']}"}  # a host that names another caller
            with pytest.raises(SealedRequestError, match="handed in for"):
                client.predict(images(1))
            assert enclave.replies[-2].code == "request.stale_session", "her session is not his"


@pytest.mark.parametrize("key", ["", "alice", "gk_", "gk__x", "gk_a_", "gk_a", "sk_a_b"])
def test_a_key_that_is_none(key: str) -> None:
    with pytest.raises(ConfigError, match="gk_NAME_SECRET"):
        caller_of(key)


def test_a_callers_name() -> None:
    assert caller_of("gk_alice_00ff") == "alice"
    assert caller_of(None) == ""


class Host:
    """A host between a channel and an enclave, which changes what passes."""

    def __init__(self, sealed: Sealed, change: str = "nothing") -> None:
        self.enclave = Simulated(sealed, Limits())
        self.other = Simulated(sealed, Limits())
        self.change = change
        self.last: bytes | None = None

    def response(self, request: Request) -> Response:
        if request.method == "GET":
            return Response(200, {}, self._evidence(request.path))
        (reply,) = self.enclave.call([Ask("ip:1", -1, request.body, sealed=True)])
        assert not reply.code, reply.detail
        body = reply.body
        match self.change:
            case "flip answer":
                body = body[:-1] + bytes([body[-1] ^ 1])
            case "plain answer":
                body = b'{"model_name": "mlp", "outputs": []}'
            case "old answer" if self.last is not None:
                body = self.last
        self.last = self.last or reply.body
        return Response(200, {}, body)

    def _evidence(self, path: str) -> bytes:
        text = path.partition("nonce=")[2].partition("&")[0] + "="
        nonce = msgspec.convert(text.replace("-", "+").replace("_", "/"), bytes)
        found = self.enclave.evidence(nonce)
        theirs = self.other.evidence(nonce)
        replace = msgspec.structs.replace
        match self.change:
            case "own HPKE key":
                found = replace(found, keys=replace(found.keys, hpke=theirs.keys.hpke))
            case "own signing key":
                found = replace(found, keys=replace(found.keys, signing=theirs.keys.signing))
            case "longer life":
                found = replace(found, keys=replace(found.keys, expires=found.keys.expires + 10**6))
            case "old evidence":
                found = self.enclave.evidence(bytes(32))
            case "own manifest":
                found = replace(found, manifest=found.manifest.replace(b'"mlp"', b'"slp"'))
            case "own guard":
                found = replace(found, guard="0" * 64)
            case "half":
                return msgspec.json.encode(found)[:-200]
        return msgspec.json.encode(found)


def ask(host: Host, channel: SealedChannel | None = None, model: str = "mlp", version: str | None = None) -> Any:
    body, json_bytes = encode_request({"image": images(2)})
    channel = channel or SealedChannel(SIMULATED, api_key=None, attempts=1)

    def talk() -> Talk[Any]:
        return (yield from channel.ask(model, version, body, json_bytes))

    conversation = talk()
    try:
        step = next(conversation)
        while True:
            assert isinstance(step, Request)
            step = conversation.send(host.response(step))
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize(
    "change", ["own HPKE key", "own signing key", "longer life", "old evidence", "own manifest", "own guard"]
)
def test_evidence_that_a_host_has_changed_is_refused_before_anything_is_sent(
    sealed: dict[str, Sealed], change: str
) -> None:
    host = Host(sealed["mlp"], change)
    with pytest.raises(AttestationError) as caught:
        ask(host)
    assert isinstance(caught.value.report, Report)
    assert host.enclave.asks == []


@pytest.mark.parametrize("change", ["flip answer", "plain answer", "old answer"])
def test_answers_that_a_host_has_changed_are_refused(sealed: dict[str, Sealed], change: str) -> None:
    host, channel = Host(sealed["mlp"], change), SealedChannel(SIMULATED, api_key=None, attempts=1)
    if change == "old answer":
        ask(host, channel)
    with pytest.raises(ProofError):
        ask(host, channel)


def test_the_control_an_honest_host(sealed: dict[str, Sealed]) -> None:
    found = ask(Host(sealed["mlp"]))
    assert decode_response(found.body, found.json_bytes).outputs["probabilities"].shape[0] == 2


def test_an_answer_signed_under_another_key_than_the_attested_one(sealed: dict[str, Sealed]) -> None:
    """As if the enclave's signing key were changed after it was attested: the answer opens, and its proof does not hold."""
    host = Host(sealed["mlp"])
    channel = SealedChannel(SIMULATED, api_key=None, attempts=1)
    ask(host, channel)
    host.enclave.service._reply_maker = host.other.service._reply_maker
    with pytest.raises(ProofError, match="signature"):
        ask(host, channel)


def test_an_envelope_that_was_opened_and_lost_is_sealed_anew(sealed: dict[str, Sealed]) -> None:
    """A host hands it in, loses the answer and says 503: repeated as it is it would be refused for ever."""
    host, sent = Host(sealed["mlp"]), list[bytes]()

    def respond(request: Request) -> Response:
        if request.method == "GET":
            return host.response(request)
        sent.append(request.body)
        if len(sent) == 1:
            host.response(request)
            return Response(503, {"retry-after": "0"}, b"{}")
        if request.body == sent[0]:
            (reply,) = host.enclave.call([Ask("ip:1", -1, request.body, sealed=True)])
            return Response(409, {}, msgspec.json.encode({"error": reply.detail, "code": reply.code}))
        return host.response(request)

    body, json_bytes = encode_request({"image": images(2)})
    conversation = SealedChannel(SIMULATED, api_key=None, attempts=3).ask("mlp", None, body, json_bytes)
    found: Any = None
    try:
        step = next(conversation)
        while True:
            step = conversation.send(respond(step) if isinstance(step, Request) else None)
    except StopIteration as end:
        found = end.value
    assert decode_response(found.body, found.json_bytes).outputs["probabilities"].shape[0] == 2
    assert sent[0] == sent[1] != sent[2]
    assert len(sent) == 3


def test_evidence_of_another_model_or_version(sealed: dict[str, Sealed]) -> None:
    with pytest.raises(AttestationError, match="not of other"):
        ask(Host(sealed["mlp"]), model="other")
    with pytest.raises(AttestationError, match="not of mlp version 2"):
        ask(Host(sealed["mlp"]), version="2")


def test_what_a_host_says_of_labels_and_inputs_does_not_count(several: Served) -> None:
    """A host that swaps the labels in the metadata fools a plain client, and not a sealing one."""
    with (
        Client(several.url, model="mlp") as plain,
        Client(several.url, model="mlp", sealed=True, policy=SIMULATED) as seal,
    ):
        for client in (plain, seal):
            honest = client.metadata()
            assert honest.garrison is not None
            lie = msgspec.structs.replace(honest.garrison, labels=tuple(reversed(LABELS)))
            client._core._metadata = msgspec.structs.replace(honest, garrison=lie)
        assert plain.predict(images(1)).labels == tuple(reversed(LABELS))
        assert seal.predict(images(1)).labels == LABELS


def test_it_attests_with_a_fresh_nonce_each_time() -> None:
    nonces = set()
    for _ in range(3):
        talk = SealedChannel(SIMULATED, api_key="gk_a_b", attempts=1).attested("m", "3")
        step = next(talk)
        assert isinstance(step, Request)
        assert step.headers == {"authorization": "Bearer gk_a_b"}
        assert step.path.endswith("&model=m&version=3")
        nonces.add(step.path.partition("nonce=")[2].partition("&")[0])
    assert len(nonces) == 3
    assert all(len(nonce) == 43 for nonce in nonces)


def test_half_evidence_is_an_error_of_the_service() -> None:
    channel = SealedChannel(SIMULATED, api_key=None, attempts=1)
    for body in (b"", b"{}", b"[]", b'{"quote": 1}'):
        with pytest.raises(ServiceError, match="evidence"):
            play(channel.attested("m", None), Response(200, {}, body))
