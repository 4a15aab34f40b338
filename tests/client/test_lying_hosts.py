"""A sealing client and hosts that change what passes: evidence, answers, models."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.client.test_core import play
from tests.models import Sealed, images
from tests.simulated import Simulated

from garrison.attest.policy import Policy
from garrison.attest.report import Report
from garrison.client.sealed import SealedChannel
from garrison.client.talk import Talk
from garrison.errors import AttestationError, ProofError, ServiceError
from garrison.limits import Limits
from garrison.protocol.http_messages import Request, Response
from garrison.protocol.messages import Ask
from garrison.protocol.oip_client import decode_response, encode_request

SIMULATED = Policy(allow_simulated=True)


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
