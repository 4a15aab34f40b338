"""The envelope: its one form, its lengths, and every way in which it can be wrong."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.crypto.hpke import AVAILABLE, X25519, KeyPair, seal_answer
from garrison.errors import ProofError, SealedRequestError
from garrison.protocol.letters import LEAST_BUCKET, bucket
from garrison.protocol.sealed import (
    HEADER_BYTES,
    AnswerHead,
    Grant,
    RequestHead,
    key_id,
    read_answer,
    read_outside,
    read_request,
    seal_request,
    split_envelope,
    write_answer,
)

KEY = bytes(range(32))
HEAD = RequestHead("alice", 17, "nonce", KEY, 1_700_000_000)
ANSWER = AnswerHead("", "", 5, b"proof")


def opened(pair: KeyPair, envelope: bytes) -> bytes:
    read_outside(envelope)
    info, message = split_envelope(envelope)
    return pair.open(message, info)


def letter(head: bytes, body: bytes, *, pad: int | None = None, fill: bytes = b"\0") -> bytes:
    start = struct.pack(">II", len(head), len(body)) + head + body
    return start + fill * (bucket(len(start)) - len(start) if pad is None else pad)


@pytest.mark.parametrize("suite", AVAILABLE)
@pytest.mark.parametrize("length", [0, 1, 5000])
def test_a_request_comes_through(suite: str, length: int) -> None:
    pair, body = KeyPair.generate(suite), b"b" * length
    envelope = seal_request(suite, pair.public, 7, HEAD, body)
    outside = read_outside(envelope)
    assert (outside.epoch, outside.key_id) == (7, key_id(suite, pair.public))
    assert read_request(opened(pair, envelope)) == (HEAD, body)


@pytest.mark.parametrize("suite", AVAILABLE)
def test_no_flipped_byte_of_an_envelope_opens(suite: str) -> None:
    pair = KeyPair.generate(suite)
    envelope = seal_request(suite, pair.public, 7, HEAD, b"body")
    for at in range(len(envelope)):
        changed = envelope[:at] + bytes([envelope[at] ^ 0x10]) + envelope[at + 1 :]
        with pytest.raises(SealedRequestError):
            opened(pair, changed)
    assert read_request(opened(pair, envelope))[1] == b"body"


def test_no_flipped_byte_of_an_answer_opens() -> None:
    sealed = write_answer(KEY, ANSWER, b"answer")
    assert read_answer(KEY, sealed) == (ANSWER, b"answer")
    for at in range(len(sealed)):
        with pytest.raises(ProofError):
            read_answer(KEY, sealed[:at] + bytes([sealed[at] ^ 0x10]) + sealed[at + 1 :])
    with pytest.raises(ProofError):
        read_answer(bytes(32), sealed)
    for other in (b"", b"GSA2", b"{}", sealed[:-1]):
        with pytest.raises(ProofError):
            read_answer(KEY, other)


@given(st.integers(min_value=0, max_value=1 << 28))
def test_buckets(length: int) -> None:
    found = bucket(length)
    assert found >= max(length, LEAST_BUCKET)
    assert found <= max(LEAST_BUCKET, length * 9 / 8)
    assert bucket(found) == found
    assert bucket(found + 1) > found


def test_there_are_eight_buckets_between_powers_of_two() -> None:
    assert sorted({bucket(n) for n in range(1025, 2049)}) == list(range(1152, 2049, 128))


def test_lengths_tell_no_more_than_their_bucket() -> None:
    pair = KeyPair.generate(X25519)
    sizes = {len(seal_request(X25519, pair.public, 1, HEAD, bytes(n))) for n in range(0, 900, 50)}
    assert len(sizes) == 1
    short = write_answer(KEY, AnswerHead("request.input", "why", -1, b""), b"")
    assert len(short) == len(write_answer(KEY, ANSWER, bytes(500)))


BODY = b"body"
GOOD = msgspec.msgpack.encode(HEAD)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"\0" * 7,
        b"\0" * LEAST_BUCKET,
        letter(GOOD, BODY, pad=0),
        letter(GOOD, BODY) + b"\0" * 128,
        letter(GOOD, BODY)[:-1] + b"\1",
        letter(GOOD, BODY, fill=b"x"),
        letter(GOOD[:-1], BODY),
        letter(GOOD + b"\0", BODY),
        letter(b"", BODY),
        letter(msgspec.msgpack.encode(["alice", 1, "n", KEY, 1, "", b"", "more"]), BODY),
        letter(msgspec.msgpack.encode(["alice", 1, "n", KEY, 1]), BODY),
        letter(msgspec.msgpack.encode(["alice", 1, "n", KEY, 1, ""]), BODY),
        letter(msgspec.msgpack.encode(["alice", 1, "n", KEY]), BODY),
        letter(msgspec.msgpack.encode(["alice", "1", "n", KEY, 1, "", b""]), BODY),
        letter(msgspec.msgpack.encode(["alice", 1, "n", KEY[:31], 1, "", b""]), BODY),
        letter(msgspec.msgpack.encode({"caller": "alice"}), BODY),
        letter(b"\xc1" * 10, BODY),
        letter(b"\x91" * 900, BODY),
        struct.pack(">II", 0xFFFFFFFF, 0xFFFFFFFF) + bytes(LEAST_BUCKET - 8),
    ],
)
def test_letters_that_are_not_in_their_one_form(wrong: bytes) -> None:
    with pytest.raises(SealedRequestError):
        read_request(wrong)


def test_the_good_letter_is_good() -> None:
    assert read_request(letter(GOOD, BODY)) == (HEAD, BODY)


@given(st.binary(max_size=200))
def test_nonsense_is_refused_with_a_typed_error(data: bytes) -> None:
    for text in (data, data + bytes(LEAST_BUCKET - len(data))):
        with pytest.raises(SealedRequestError):
            read_request(text)
    with pytest.raises(SealedRequestError):
        read_outside(data[:HEADER_BYTES])


@given(st.integers(0, LEAST_BUCKET - 1), st.integers(1, 255))
def test_a_letter_with_one_byte_changed_is_another_or_none(at: int, flip: int) -> None:
    """What a client could do to its own letter: a typed error, or one that reads as something else."""
    good = letter(GOOD, BODY)
    try:
        found = read_request(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
    except SealedRequestError:
        return
    assert found != (HEAD, BODY)


def test_an_answer_whose_letter_is_wrong() -> None:
    sealed = b"GSA2" + seal_answer(KEY, b"no letter", b"garrison sealed answer v2\0")
    with pytest.raises(ProofError, match="cannot be read"):
        read_answer(KEY, sealed)


def test_an_answer_may_grant_a_session() -> None:
    head = AnswerHead("", "", -1, b"proof", Grant(bytes(16), 10, 60, b"secret"))
    assert read_answer(KEY, write_answer(KEY, head, b"answer")) == (head, b"answer")
