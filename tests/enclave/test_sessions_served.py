"""Sessions through the service: answered, refused, granted to whom they belong, and what the first request does not tell."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.enclave.session_holding import Held
from tests.models import BOUNDS, RELEASE, Sealed, images, seal_mlp

from garrison.attest.evidence import KeySet
from garrison.enclave.quotes.sim import SimQuoter
from garrison.enclave.service import Service
from garrison.errors import SealedRequestError
from garrison.protocol.messages import Ask, Reply
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.protocol.sealed import AnswerHead, RequestHead, read_answer, seal_request
from garrison.protocol.sealed_session import Bound, Offer, SessionHead, seal_within
from garrison.protocol.statement import verify_answer

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    chain = (BOUNDS, RELEASE)
    return seal_mlp(tmp_path_factory.mktemp("sealed") / "bundle", chain)


@pytest.fixture(scope="module")
def service(sealed: Sealed) -> Service:
    return Service(sealed.verified(), quoter=SimQuoter())


def first_of(service: Service, keys: KeySet, caller: str = "alice", **inside: Any) -> tuple[Reply, bytes, Offer]:
    body, json_bytes = encode_request({"image": images(1)})
    offer = Offer(keys.suite)
    given: dict[str, Any] = {
        "caller": caller,
        "json_bytes": json_bytes,
        "nonce": "n",
        "answer_key": KEY,
        "time": int(time.time()),
    }
    head = RequestHead(**({**given, "offer": offer.content} | inside))
    envelope = seal_request(keys.suite, keys.hpke, keys.epoch, head, body)
    (reply,) = service.answer([Ask("alice", -1, envelope, sealed=True)])
    return reply, envelope, offer


def session_of(service: Service, caller: str = "alice") -> Held:
    keys = service.evidence(bytes(32), {}).keys
    reply, envelope, offer = first_of(service, keys, caller)
    grant = read_answer(KEY, reply.body)[0].grant
    assert grant is not None
    bound = Bound(keys.signing, service.manifest_digest, service.guard_digest, caller)
    return Held(grant.session, offer.take(grant, envelope, bound))


def within(held: Held, counter: int, rows: int = 2, **inside: Any) -> tuple[Ask, bytes, bytes]:
    body, json_bytes = encode_request({"image": images(rows)})
    given: dict[str, Any] = {"json_bytes": json_bytes, "nonce": "n", "time": int(time.time())}
    head = SessionHead(**(given | inside))
    envelope, key = seal_within(held.keys, held.name, counter, head, body)
    return Ask("alice", -1, envelope, sealed=True), key, body


def opened(reply: Reply, key: bytes) -> tuple[AnswerHead, bytes]:
    assert (reply.code, reply.json_bytes, reply.proof) == ("", -1, b"")
    return read_answer(key, reply.body)


def test_a_request_within_a_session_is_answered_sealed_and_signed(service: Service) -> None:
    held = session_of(service)
    ask, key, body = within(held, 0)
    (reply,) = service.answer([ask])
    head, content = opened(reply, key)
    assert (head.code, head.grant) == ("", None)
    assert decode_response(content, head.json_bytes).outputs["probabilities"].shape[0] == 2
    signed = verify_answer(head.proof, service.public_key, request=body, answer=content, nonce="n")
    assert (signed.model, signed.guard) == (service.manifest_digest, service.guard_digest)
    assert (reply.outcome.code, reply.outcome.rows, reply.outcome.distinct) == ("sealed", 2, 2)


def test_each_kind_of_wrong_request_harms_no_other_of_its_batch(service: Service) -> None:
    held, other = session_of(service), session_of(service)
    good, key, _ = within(held, 0)
    crossed, _, _ = within(Held(held.name, other.keys), 1)
    broken = Ask("alice", -1, good.body[:-1] + bytes([good.body[-1] ^ 1]), sealed=True)
    theirs = Ask("bob", -1, within(held, 2)[0].body, sealed=True)
    unknown, _, _ = within(Held(bytes(16), held.keys), 0)
    (late, late_key, _), (nonce, nonce_key, _) = within(held, 3, time=0), within(held, 4, nonce="\n")
    last, last_key, _ = within(held, 5)
    asks = [
        broken,
        good,
        good,
        crossed,
        theirs,
        unknown,
        Ask("alice", -1, b"GSM1short", sealed=True),
        late,
        nonce,
        last,
    ]
    replies = service.answer(asks)
    assert [reply.code for reply in replies] == [
        *("request.sealed", "", "request.replayed", "request.sealed", "request.stale_session"),
        *("request.stale_session", "request.sealed", "", "", ""),
    ]
    assert [reply.outcome.rows for reply in replies] == [0, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    inside = {k: opened(replies[k], one)[0].code for k, one in ((1, key), (7, late_key), (8, nonce_key), (9, last_key))}
    assert inside == {1: "", 7: "request.sealed", 8: "request.sealed", 9: ""}


def test_answers_of_a_session_cannot_be_swapped(service: Service) -> None:
    held = session_of(service)
    (one, one_key, _), (two, two_key, _) = within(held, 0), within(held, 1)
    replies = service.answer([one, two])
    for reply, key, wrong in ((replies[0], one_key, two_key), (replies[1], two_key, one_key)):
        assert opened(reply, key)[0].code == ""
        with pytest.raises(Exception, match="belongs to another request"):
            opened(reply, wrong)


def test_a_session_is_granted_once_and_to_whom_it_belongs(service: Service) -> None:
    """Who is handed in under another name, or out of time, gets no session; nor does a request that comes twice."""
    keys = service.evidence(bytes(32), {}).keys
    before = len(service._mail._sessions)
    for inside in ({"caller": "bob"}, {"time": 0}, {"offer": b"short"}):
        reply, _, _ = first_of(service, keys, **inside)
        head, _ = opened(reply, KEY)
        assert (head.code, head.grant) == ("request.sealed", None)
    reply, envelope, _ = first_of(service, keys, offer=b"")
    assert opened(reply, KEY)[0].grant is None
    assert len(service._mail._sessions) == before
    reply, envelope, _ = first_of(service, keys)
    assert opened(reply, KEY)[0].grant is not None
    assert [one.code for one in service.answer([Ask("alice", -1, envelope, sealed=True)])] == ["request.replayed"]
    assert len(service._mail._sessions) == before + 1


def test_another_enclave_of_the_same_model_does_not_know_it(sealed: Sealed, service: Service) -> None:
    held = session_of(service)
    ask, _, _ = within(held, 0)
    restarted = Service(sealed.verified(), quoter=SimQuoter())
    assert [reply.code for reply in restarted.answer([ask])] == ["request.stale_session"]
    assert [reply.code for reply in service.answer([ask])] == [""]


def test_a_service_without_an_enclave_keeps_none(sealed: Sealed, service: Service) -> None:
    ask, _, _ = within(session_of(service), 0)
    (reply,) = Service(sealed.verified()).answer([ask])
    assert (reply.code, reply.outcome.rows) == ("request.sealed", 0)


def test_the_first_request_and_the_enclaves_private_key_tell_nothing_of_the_rest(service: Service) -> None:
    """Forward secrecy within a key's life: who records everything and gets the long-lived key later reads the first request alone."""
    keys = service.evidence(bytes(32), {}).keys
    reply, envelope, offer = first_of(service, keys)
    ring = service._keys
    assert ring is not None
    ring._newest._seen.clear()
    from_the_recording = ring.open(envelope)  # what the key's thief can do
    assert offer.content in from_the_recording
    grant = read_answer(KEY, reply.body)[0].grant  # and so the answer too
    assert grant is not None
    pair = ring._newest._pair
    with pytest.raises(SealedRequestError):
        pair.open(grant.secret, b"")
    bound = Bound(keys.signing, service.manifest_digest, service.guard_digest, "alice")
    with pytest.raises(Exception, match="not for this request"):
        Offer(keys.suite).take(grant, envelope, bound)
    assert offer.take(grant, envelope, bound), "control: the client, which has the private half of its offer"
