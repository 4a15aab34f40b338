"""Requests within a session: their one form, and every way in which one is of another place, session or direction."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.crypto.hpke import AVAILABLE, X25519
from garrison.crypto.sessions import SessionKeys, seal_message
from garrison.errors import ProofError, SealedRequestError, ServiceError
from garrison.protocol.letters import LEAST_BUCKET, write_letter
from garrison.protocol.sealed import AnswerHead, read_answer, write_answer
from garrison.protocol.sealed_session import (
    HEADER_BYTES,
    MOST_COUNTER,
    SESSION_BYTES,
    Bound,
    Offer,
    SessionHead,
    grant_session,
    offer_bytes,
    open_within,
    read_place,
    seal_within,
    within_session,
)

FIRST = b"GSR2 and the whole envelope of the first request"
BOUND = Bound(signing=b"s" * 32, manifest="a" * 64, guard="b" * 64, caller="alice")
HEAD = SessionHead(17, "nonce", 1_700_000_000)
NAME = bytes(range(SESSION_BYTES))


def keys(seed: bytes = b"1") -> SessionKeys:
    return SessionKeys.derive(seed * 32, b"2" * 32, b"")


@pytest.mark.parametrize("suite", AVAILABLE)
def test_both_sides_come_to_the_same_keys(suite: str) -> None:
    offer = Offer(suite)
    assert len(offer.content) == offer_bytes(suite)
    grant, theirs = grant_session(suite, offer.content, FIRST, BOUND, requests=9, seconds=60)
    assert (len(grant.session), grant.requests, grant.seconds) == (SESSION_BYTES, 9, 60)
    assert offer.take(grant, FIRST, BOUND) == theirs
    again, others = grant_session(suite, offer.content, FIRST, BOUND, requests=9, seconds=60)
    assert again.session != grant.session
    assert others != theirs


def test_a_grant_is_for_its_offer_and_for_all_that_it_is_bound_to() -> None:
    """Whatever differs between what the client means and what the enclave means, there are no keys."""
    offer = Offer(X25519)
    grant, _ = grant_session(X25519, offer.content, FIRST, BOUND, requests=9, seconds=60)
    replace = msgspec.structs.replace
    others = [
        replace(BOUND, **{name: value})
        for name, value in (("signing", b"t" * 32), ("manifest", "c" * 64), ("guard", "c" * 64), ("caller", "bob"))
    ]
    for bound in others:
        with pytest.raises(ProofError, match="not for this request"):
            offer.take(grant, FIRST, bound)
    wrong = [
        (Offer(X25519), grant, FIRST),
        (offer, grant, FIRST + b"x"),
        (offer, replace(grant, session=NAME), FIRST),
        (offer, replace(grant, secret=grant.secret[:-1] + bytes([grant.secret[-1] ^ 1])), FIRST),
        (offer, replace(grant, secret=b""), FIRST),
    ]
    for mine, theirs, first in wrong:
        with pytest.raises(ProofError):
            mine.take(theirs, first, BOUND)
    offer.take(grant, FIRST, BOUND)


def test_names_cannot_be_shifted_from_one_field_into_the_next() -> None:
    first = msgspec.structs.replace(BOUND, guard="b" * 64 + "al", caller="ice")
    assert first.binding(FIRST, NAME) != BOUND.binding(FIRST, NAME)


def test_a_bad_offer_is_granted_nothing() -> None:
    for content in (b"s" * 32 + bytes(32), b"s" * 32, b""):
        with pytest.raises(ServiceError):
            grant_session(X25519, content, FIRST, BOUND, requests=1, seconds=1)


@pytest.mark.parametrize("length", [0, 1, 5000])
def test_a_request_and_its_answer_come_through(length: int) -> None:
    envelope, answer_key = seal_within(keys(), NAME, 7, HEAD, b"b" * length)
    assert within_session(envelope)
    assert read_place(envelope) == (NAME, 7)
    head, body, theirs = open_within(keys(), envelope)
    assert (head, body, theirs) == (HEAD, b"b" * length, answer_key)
    answer = AnswerHead("", "", 5, b"proof")
    assert read_answer(answer_key, write_answer(theirs, answer, b"answer")) == (answer, b"answer")


def test_no_flipped_byte_opens() -> None:
    envelope, _ = seal_within(keys(), NAME, 7, HEAD, b"body")
    for at in range(len(envelope)):
        changed = envelope[:at] + bytes([envelope[at] ^ 0x10]) + envelope[at + 1 :]
        with pytest.raises(SealedRequestError):
            open_within(keys(), changed)
    assert open_within(keys(), envelope)[1] == b"body"


def test_the_same_counter_twice_is_never_under_the_same_key() -> None:
    """As a forked client, or one from a snapshot of its machine, would do. With AES-GCM under one key and the counter as its nonce, the control,
    the two ciphertexts would tell the difference of the two inputs."""
    bodies = bytes(900), b"\1" * 900
    found = [seal_within(keys(), NAME, 3, HEAD, body)[0] for body in bodies]
    shared = keys().request_key(b"one key")
    control = [seal_message(shared, write_letter(HEAD, body), b"") for body in bodies]
    expected = bytes(a ^ b for a, b in zip(*(write_letter(HEAD, body) for body in bodies), strict=True))

    def difference(pair: list[bytes], skip: int) -> bytes:
        return bytes(a ^ b for a, b in zip(pair[0][skip:-16], pair[1][skip:-16], strict=True))

    assert difference(control, 0) == expected
    assert difference(found, HEADER_BYTES) != expected
    assert len({open_within(keys(), one)[2] for one in found}) == 2


def test_another_session_another_direction_another_place() -> None:
    envelope, answer_key = seal_within(keys(), NAME, 7, HEAD, b"body")
    with pytest.raises(SealedRequestError):
        open_within(keys(b"3"), envelope)
    swapped = SessionKeys(keys().answers, keys().requests)
    with pytest.raises(SealedRequestError):
        open_within(swapped, envelope)
    other = seal_within(keys(), NAME, 8, HEAD, b"body")[1]
    answer = write_answer(other, AnswerHead("", "", -1, b""), b"to the other request")
    assert read_answer(other, answer)[1] == b"to the other request"
    with pytest.raises(ProofError):
        read_answer(answer_key, answer)


@pytest.mark.parametrize("wrong", [(b"short", 0), (NAME + b"x", 0), (NAME, -1), (NAME, MOST_COUNTER)])
def test_a_place_that_is_none(wrong: tuple[bytes, int]) -> None:
    with pytest.raises(ServiceError):
        seal_within(keys(), *wrong, HEAD, b"")


@given(st.binary(max_size=80))
def test_nonsense_is_refused_with_a_typed_error(data: bytes) -> None:
    with pytest.raises(SealedRequestError):
        read_place(data[:HEADER_BYTES])
    with pytest.raises(SealedRequestError):
        open_within(keys(), b"GSM1" + data)


def test_a_letter_that_is_not_in_its_one_form() -> None:
    header = seal_within(keys(), NAME, 0, HEAD, b"")[0][:HEADER_BYTES]
    key = keys().request_key(header)
    for letter in (b"", bytes(LEAST_BUCKET), write_letter(AnswerHead("", "", 1, b""), b"")):
        with pytest.raises(SealedRequestError, match="cannot be read"):
            open_within(keys(), header + seal_message(key, letter, header))


def test_lengths_tell_no_more_than_their_bucket() -> None:
    sizes = {len(seal_within(keys(), NAME, n, HEAD, bytes(n))[0]) for n in range(0, 900, 50)}
    assert sizes == {HEADER_BYTES + LEAST_BUCKET + 16}
