from __future__ import annotations

import sys
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.attest.nitro_world import HEADER, NitroWorld, p384
from tests.attest.worlds import Authority, change, failed, judge, make_evidence

from garrison.attest.verifiers.nitro import MOST_BYTES
from garrison.errors import MissingExtraError


def with_raw(nitro: NitroWorld, raw: bytes) -> list[str]:
    evidence = make_evidence(nitro)
    return failed(judge(change(evidence, quote=change(evidence.quote, quote=raw)), nitro.policy()))


def with_fields(nitro: NitroWorld, **fields: Any) -> list[str]:
    return failed(judge(make_evidence(nitro, quote=fields), nitro.policy()))


def payload(nitro: NitroWorld, **fields: Any) -> bytes:
    document = nitro.document(make_evidence(nitro).expected_report_data(), **fields)
    return bytes(cbor2.dumps(document))


def flips_missed(nitro: NitroWorld, step: int) -> list[int]:
    evidence, policy, missed = make_evidence(nitro), nitro.policy(), []
    good = evidence.quote.quote
    for byte in range(0, len(good), step):
        raw = bytearray(good)
        raw[byte] ^= 1 << byte % 8
        if judge(change(evidence, quote=change(evidence.quote, quote=bytes(raw))), policy).passed:
            missed.append(byte)
    assert with_raw(nitro, good) == []
    return missed


def test_one_flipped_bit_in_every_fifth_byte_is_refused(nitro: NitroWorld) -> None:
    assert flips_missed(nitro, 5) == []


@pytest.mark.slow
def test_one_flipped_bit_in_any_byte_is_refused(nitro: NitroWorld) -> None:
    """All of the message, the certificates and the unsigned frame as well."""
    assert flips_missed(nitro, 1) == []


def test_every_field_is_authenticated(nitro: NitroWorld) -> None:
    """Each field changed, well formed, under the old signature."""
    good = cbor2.loads(make_evidence(nitro).quote.quote)
    document = cbor2.loads(good[2])
    others = {
        "module_id": "i-1",
        "timestamp": document["timestamp"] + 1,
        "pcrs": {**document["pcrs"], 4: b"\1" * 48},
        "public_key": b"key",
        "user_data": bytes(64),
        "nonce": b"nonce",
    }
    for name, value in others.items():
        changed = cbor2.dumps([good[0], good[1], cbor2.dumps(document | {name: value}), good[3]])
        assert with_raw(nitro, changed) == ["signature"], name
    assert with_raw(nitro, cbor2.dumps([good[0], good[1], cbor2.dumps(document), good[3]])) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"digest": "SHA256"},
        {"pcrs": {}},
        {"pcrs": {1: bytes(48)}},
        {"pcrs": {0: bytes(20)}},
        {"timestamp": 0},
        {"timestamp": "now"},
        {"module_id": ""},
        {"certificate": b""},
        {"cabundle": []},
        {"cabundle": [b""]},
        {"user_data": b"x" * 513},
        {"more": 1},
    ],
    ids="-".join,
)
def test_a_signed_document_of_the_wrong_form_is_refused(nitro: NitroWorld, fields: dict[str, Any]) -> None:
    assert with_fields(nitro, **fields) == ["format"]


def test_messages_of_the_wrong_form_are_refused(nitro: NitroWorld) -> None:
    header, empty, body, signature = cbor2.loads(make_evidence(nitro).quote.quote)
    es256 = cbor2.dumps({1: -7})
    wrong = {
        "bytes behind": cbor2.dumps([header, empty, body, signature]) + b"\0",
        "three parts": cbor2.dumps([header, empty, body]),
        "a text": cbor2.dumps("hello"),
        "unprotected": cbor2.dumps([header, {1: -35}, body, signature]),
        "another algorithm": cbor2.dumps([es256, empty, body, signature]),
        "more headers": cbor2.dumps([cbor2.dumps({1: -35, 4: b""}), empty, body, signature]),
        "no headers": cbor2.dumps([b"", empty, body, signature]),
        "short signature": cbor2.dumps([header, empty, body, signature[:95]]),
        "a tag": cbor2.dumps(cbor2.CBORTag(18, [header, empty, body, signature])),
        "too long": cbor2.dumps([header, empty, bytes(MOST_BYTES), signature]),
        "too deep": b"\x81" * 5000 + b"\0",
        "a promise": b"\x5b" + b"\xff" * 8,
    }
    assert {name: with_raw(nitro, raw) for name, raw in wrong.items()} == {key: ["format"] for key in wrong}


def test_a_key_named_twice_is_refused(nitro: NitroWorld) -> None:
    body = bytearray(payload(nitro))
    body[0] += 1
    body += cbor2.dumps("nonce") + cbor2.dumps(b"again")
    assert with_raw(nitro, nitro.sign(bytes(body))) == ["format"]
    assert with_raw(nitro, nitro.sign(payload(nitro))) == []


@pytest.mark.parametrize(("seconds", "steps"), [(-301, ["age"]), (61, ["age"]), (-299, []), (59, [])])
def test_age(nitro: NitroWorld, seconds: float, steps: list[str]) -> None:
    assert with_fields(nitro, seconds=seconds) == steps


def test_another_chain_is_refused(nitro: NitroWorld) -> None:
    stranger = NitroWorld()
    assert with_fields(nitro, cabundle=[stranger.root.der, stranger.region.der, stranger.host.der]) == ["certificates"]
    assert with_fields(nitro, cabundle=[nitro.root.der, nitro.host.der]) == ["certificates"]
    assert with_fields(nitro, cabundle=[nitro.host.der, nitro.region.der, nitro.root.der]) == ["certificates"]
    assert with_fields(nitro, cabundle=[nitro.root.der, b"garbage"]) == ["certificates"]


def test_another_enclave_cannot_certify_a_key(nitro: NitroWorld) -> None:
    """A leaf's key is the enclave's neighbour's: what it signs is no certificate."""
    forged = Authority("enclave", nitro.leaf, p384())
    chain = [nitro.root.der, nitro.region.der, nitro.host.der, nitro.leaf.der]
    assert with_fields(nitro, certificate=forged.der, cabundle=chain) == ["certificates"]


def test_a_document_signed_by_another_key_is_refused(nitro: NitroWorld) -> None:
    other = Authority("enclave", nitro.host, p384())
    assert with_fields(nitro, certificate=other.der) == ["signature"]
    weak = Authority("enclave", nitro.host, ec.generate_private_key(ec.SECP256R1()))
    assert with_fields(nitro, certificate=weak.der) == ["signature"]


def test_the_header_is_signed_too(nitro: NitroWorld) -> None:
    """The same header in a longer form reads the same and was not what has been signed."""
    _header, empty, body, signature = cbor2.loads(make_evidence(nitro).quote.quote)
    longer = b"\xa1\x01\x39\x00\x22"
    assert cbor2.loads(longer) == cbor2.loads(HEADER)
    assert with_raw(nitro, cbor2.dumps([longer, empty, body, signature])) == ["signature"]


def test_without_the_extra_it_is_named(nitro: NitroWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = make_evidence(nitro)
    monkeypatch.setitem(sys.modules, "cbor2", None)
    with pytest.raises(MissingExtraError, match=r"garrison\[attest\]"):
        judge(evidence, nitro.policy())
