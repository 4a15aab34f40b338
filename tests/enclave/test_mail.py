"""Sealed requests through the service: what the host sees, and what the client gets."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.models import BOUNDS, CLASSES, RELEASE, SCORE, Sealed, images, misinform, seal_mlp

from garrison.attest.evidence import Evidence, KeySet
from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerKey
from garrison.enclave.backends.none import NoIsolation
from garrison.enclave.host import Launch
from garrison.enclave.quotes.sim import SimQuoter
from garrison.enclave.service import Service
from garrison.errors import IsolationError, MalformedRequestError, NotFoundError, ProofError
from garrison.limits import Limits
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.protocol.sealed import AnswerHead, RequestHead, read_answer, seal_request, write_answer
from garrison.protocol.statement import read_proof, receipt_of, verify_answer
from garrison.types import Array, DefenseSpec

KEY = bytes(range(32))
CANARY = bytes(range(100, 132))


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    chain = (BOUNDS, DefenseSpec(name="budget", parameters={"rows": 1000}), SCORE, misinform(0.6), RELEASE)
    return seal_mlp(tmp_path_factory.mktemp("sealed") / "bundle", chain)


@pytest.fixture(scope="module")
def service(sealed: Sealed) -> Service:
    return Service(sealed.verified(), key=sealed.key, quoter=SimQuoter())


@pytest.fixture(scope="module")
def keys(service: Service) -> KeySet:
    return service.evidence(bytes(32), {}).keys


def ask(keys: KeySet, x: Array, caller: str = "alice", remaining: int = -1, **inside: Any) -> Ask:
    body, json_bytes = encode_request({"image": x})
    head: dict[str, Any] = {
        "caller": caller,
        "json_bytes": json_bytes,
        "nonce": "n",
        "answer_key": KEY,
        "time": int(time.time()),
    }
    given = head | inside
    content = given.pop("body", body)
    envelope = seal_request(keys.suite, keys.hpke, keys.epoch, RequestHead(**given), content)
    return Ask("alice", remaining, envelope, sealed=True)


def opened(reply: Reply) -> tuple[AnswerHead, bytes]:
    assert (reply.code, reply.detail, reply.json_bytes, reply.proof) == ("", "", -1, b"")
    return read_answer(KEY, reply.body)


def test_a_sealed_request_is_answered_sealed_and_signed(service: Service, keys: KeySet) -> None:
    x = images(3)
    (reply,) = service.answer([ask(keys, x)])
    head, content = opened(reply)
    assert head.code == ""
    found = decode_response(content, head.json_bytes).outputs["probabilities"]
    np.testing.assert_array_equal(found, service.predict({"image": x}).outputs["probabilities"])
    body, _ = encode_request({"image": x})
    signed = verify_answer(head.proof, keys.signing, request=body, answer=content, nonce="n")
    assert (signed.model, signed.guard) == (service.manifest_digest, service.guard_digest)
    with pytest.raises(ProofError):
        read_answer(bytes(32), reply.body)


def told(reply: Reply) -> Outcome:
    """The host's outcome, but for the receipt: a random number to who does not hold the answer, of the same length for a refusal."""
    assert len(reply.outcome.receipt) == 32
    return msgspec.structs.replace(reply.outcome, receipt=b"")


def test_a_receipt_is_the_answers_to_who_holds_its_proof_and_to_nobody_else(service: Service, keys: KeySet) -> None:
    answered, short, refused = service.answer(
        [
            ask(keys, images(2), nonce="n" * 22),
            ask(keys, images(2), nonce="n"),
            ask(keys, images(2) + 5, nonce="n" * 22),
        ]
    )
    proof = opened(answered)[0].proof
    assert answered.outcome.receipt == receipt_of(read_proof(proof)[0].statement)
    guessable = opened(short)[0].proof
    assert short.outcome.receipt != receipt_of(
        read_proof(guessable)[0].statement
    )  # who guesses the input could check it
    assert opened(refused)[0].proof == b""
    assert len({r.outcome.receipt for r in (answered, short, refused)}) == 3


def test_the_host_learns_rows_and_no_more(sealed: Sealed, service: Service, keys: KeySet) -> None:
    """The control is the same questions in the open: there the outcome tells which rows were misinformed, and why one was refused."""
    x, bad = images(40), images(2) + 5
    plain = [Ask("alice", -1, *encode_request({"image": y})) for y in (x, bad)]
    shown = [reply.outcome for reply in service.answer(plain)]
    assert shown[0].replaced > 0
    assert shown[1].code == "request.input"
    hidden = [told(reply) for reply in service.answer([ask(keys, x), ask(keys, bad)])]
    assert hidden == [Outcome("sealed", 40, distinct=40), Outcome("sealed", 0)]  # and nothing of repeats


def test_a_bad_envelope_harms_no_other(service: Service, keys: KeySet) -> None:
    good, once = ask(keys, images(2)), ask(keys, images(1))
    other = ask(keys, images(2)).body
    broken = Ask("alice", -1, other[:-1] + bytes([other[-1] ^ 1]), sealed=True)
    stale = ask(msgspec.structs.replace(keys, epoch=99), images(1))
    asks = [
        good,
        broken,
        Ask("alice", -1, b"junk", sealed=True),
        stale,
        once,
        once,
        ask(keys, images(1), body=b"{"),
        Ask("alice", -1, *encode_request({"image": images(1)})),
        ask(keys, images(3), remaining=2),
        ask(keys, images(3)),
    ]
    replies = service.answer(asks)
    assert [r.code for r in replies] == [
        *("", "request.sealed", "request.sealed", "request.stale_key", ""),
        *("request.replayed", "", "", "", ""),
    ]
    inside = {k: opened(replies[k])[0].code for k in (0, 4, 6, 8, 9)}
    assert inside == {0: "", 4: "", 6: "request.malformed", 8: "request.budget_exhausted", 9: ""}
    assert [r.outcome.rows for r in replies] == [2, 0, 0, 0, 1, 0, 0, 1, 0, 3]
    for k, rows in ((0, 2), (4, 1), (9, 3)):
        head, content = opened(replies[k])
        assert decode_response(content, head.json_bytes).outputs["probabilities"].shape == (rows, CLASSES)


@pytest.mark.parametrize(
    ("inside", "outside", "answered"),
    [
        ("alice", "alice", True),
        ("", "ip:127.0.0.1", True),
        ("alice", "bob", False),
        ("", "alice", False),
        ("alice", "ip:127.0.0.1", False),
        ("ip:127.0.0.1", "ip:127.0.0.1", False),
    ],
)
def test_the_caller_inside_must_be_the_one_outside(
    service: Service, keys: KeySet, inside: str, outside: str, answered: bool
) -> None:
    envelope = ask(keys, images(1), caller=inside).body
    (reply,) = service.answer([Ask(outside, -1, envelope, sealed=True)])
    head, _ = opened(reply)
    assert head.code == ("" if answered else "request.sealed")
    assert told(reply) == Outcome("sealed", int(answered), distinct=int(answered))


@pytest.mark.parametrize(
    "inside", [{"time": 0}, {"time": 2**40}, {"nonce": "x" * 257}, {"nonce": "ä"}, {"nonce": "\n"}]
)
def test_a_letter_out_of_time_or_with_a_bad_nonce_is_refused_under_seal(
    service: Service, keys: KeySet, inside: dict[str, Any]
) -> None:
    (reply,) = service.answer([ask(keys, images(1), **inside)])
    assert opened(reply)[0].code == "request.sealed"
    assert told(reply) == Outcome("sealed", 0)


def test_a_replay_is_refused(service: Service, keys: KeySet) -> None:
    question = ask(keys, images(1))
    assert [r.code for r in service.answer([question])] == [""]
    assert [r.code for r in service.answer([question])] == ["request.replayed"]


def test_when_the_replay_set_is_full_nothing_more_is_opened(sealed: Sealed) -> None:
    limits = Limits(replay_entries=3, key_least_seconds=3600)
    service = Service(sealed.verified(), key=sealed.key, limits=limits, quoter=SimQuoter())
    keys = service.evidence(bytes(32), {}).keys
    asks = [ask(keys, images(1)) for _ in range(4)]
    assert [r.code for r in service.answer(asks)] == ["", "", "", "unavailable"]
    assert [r.code for r in service.answer(asks[:1])] == ["unavailable"]  # and not answered twice


def test_the_canary_shows_nowhere_outside_the_letter(service: Service, keys: KeySet) -> None:
    x = images(2)
    x.view(np.uint8).reshape(-1)[:32] = np.frombuffer(CANARY, np.uint8)
    plain = Ask("alice", -1, *encode_request({"image": x}))
    question = ask(keys, x)
    (reply,) = service.answer([question])
    assert CANARY in plain.body  # the control: in the open it is there
    for part in (question.body, reply.body, reply.proof, repr(reply).encode(), repr(question).encode()):
        assert CANARY not in part
    assert CANARY.hex() not in repr((question, reply))


@pytest.mark.parametrize(
    ("remaining", "fresh", "left"), [(-1, -1, -1), (5, -1, 5), (-1, 5, 5), (5, 7, 5), (7, 5, 5), (0, -1, 0), (-1, 0, 0)]
)
def test_each_row_counts_as_a_new_one(service: Service, keys: KeySet, remaining: int, fresh: int, left: int) -> None:
    letter = service._mail.open(msgspec.structs.replace(ask(keys, images(1), remaining=remaining), fresh=fresh))
    assert letter.ask.remaining == left
    assert letter.ask.fresh == -1


def test_an_opened_request_does_not_show_its_key(service: Service, keys: KeySet) -> None:
    letter = service._mail.open(ask(keys, images(1)))
    assert letter.answer_key == KEY
    assert repr(KEY) in repr(msgspec.structs.asdict(letter)), "the control arm: it would be shown so"
    assert repr(KEY) not in repr(letter)


def test_an_internal_error_is_sealed_too(sealed: Sealed, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    service = Service(sealed.verified(), key=sealed.key, quoter=SimQuoter())
    keys = service.evidence(bytes(32), {}).keys

    def broken(_: object) -> object:
        raise RuntimeError("no")

    monkeypatch.setattr(service, "_guarded", broken)
    replies = service.answer([ask(keys, images(1)), ask(keys, images(1))])
    assert [opened(reply)[0].code for reply in replies] == ["internal", "internal"]


def test_an_envelope_on_which_opening_fails_harms_no_other(
    sealed: Sealed, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    service = Service(sealed.verified(), key=sealed.key, quoter=SimQuoter())
    keys = service.evidence(bytes(32), {}).keys
    asks = [ask(keys, images(1)) for _ in range(3)]
    opens = service._mail.open

    def fragile(one: Ask) -> object:
        if one is asks[1]:
            raise RuntimeError("no")
        return opens(one)

    monkeypatch.setattr(service._mail, "open", fragile)
    assert [reply.code for reply in service.answer(asks)] == ["", "internal", ""]


def test_an_answer_that_cannot_be_sealed_harms_no_other(
    sealed: Sealed, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    service = Service(sealed.verified(), key=sealed.key, quoter=SimQuoter())
    keys = service.evidence(bytes(32), {}).keys
    asks = [ask(keys, images(1, seed=seed)) for seed in range(3)]
    write, calls = write_answer, iter(range(3))

    def fails_once(key: bytes, head: AnswerHead, body: bytes) -> bytes:
        if next(calls) == 1:
            raise RuntimeError("no")
        return write(key, head, body)

    assert [reply.code for reply in service.answer(asks[:1])] == [""]  # control
    asks[0] = ask(keys, images(1, seed=9))
    monkeypatch.setattr("garrison.enclave.mail.write_answer", fails_once)
    replies = service.answer(asks)
    assert [reply.code for reply in replies] == ["", "internal", ""]
    assert [reply.outcome.code for reply in replies] == ["sealed"] * 3
    assert "could not be sealed" in caplog.text


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_mlp(
        tmp_path_factory.mktemp("strict") / "bundle", (BOUNDS, RELEASE), owner=OwnerKey.generate(), require_sealed=True
    )


def test_the_owners_demand_is_in_the_signed_manifest_and_kept_inside(strict: Sealed) -> None:
    assert verify(strict.path, [strict.owner.public]).manifest.require_sealed
    service = Service(strict.verified(), quoter=SimQuoter())
    keys = service.evidence(bytes(32), {}).keys
    plain = Ask("alice", -1, *encode_request({"image": images(1)}))
    refused, answered = service.answer([plain, ask(keys, images(1))])
    assert (refused.code, refused.outcome.rows) == ("request.sealing_required", 0)
    assert opened(answered)[0].code == ""


def test_without_an_enclave_such_a_model_does_not_start(strict: Sealed) -> None:
    with pytest.raises(IsolationError, match="demands sealed requests"):
        NoIsolation(Launch(strict.path, [strict.owner.public]))


def test_without_an_enclave_nothing_sealed_is_taken_and_nothing_shown(sealed: Sealed, keys: KeySet) -> None:
    service = Service(sealed.verified(), key=sealed.key)
    (reply,) = service.answer([ask(keys, images(1))])
    assert reply.code == "request.sealed"
    assert "without an enclave" in reply.detail
    with pytest.raises(NotFoundError):
        service.evidence(bytes(32), {})


def test_evidence_binds_keys_nonce_manifest_and_guard(sealed: Sealed, service: Service) -> None:
    nonce = bytes(range(32))
    found = service.evidence(nonce, {"landlock": "5"})
    assert isinstance(found, Evidence)
    assert found.nonce == nonce
    assert found.manifest == (sealed.path / "manifest.json").read_bytes()
    assert (found.manifest_sha256, found.guard) == (service.manifest_digest, service.guard_digest)
    assert found.keys.signing == service.public_key
    assert (found.model, found.version, found.capabilities) == ("mlp", 1, {"landlock": "5"})
    with pytest.raises(MalformedRequestError, match="32 bytes"):
        service.evidence(b"short", {})
