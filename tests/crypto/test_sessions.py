"""Keys of a session: what makes them, and that each header makes its own."""

from __future__ import annotations

import hashlib
import hmac
import itertools

import pytest

from garrison.crypto.sessions import MESSAGE_OVERHEAD_BYTES, SECRET_BYTES, SessionKeys, open_message, seal_message
from garrison.errors import SealedRequestError

CLIENT, ENCLAVE, BINDING = b"c" * SECRET_BYTES, b"e" * SECRET_BYTES, b"b" * 32


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, an empty salt and one block, by hand."""
    extracted = hmac.digest(bytes(32), secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\1", hashlib.sha256)


def test_keys_are_those_of_rfc_5869() -> None:
    keys = SessionKeys.derive(CLIENT, ENCLAVE, BINDING)
    for name, found in (("requests", keys.requests), ("answers", keys.answers)):
        assert found == hkdf(CLIENT + ENCLAVE, b"garrison session v1\0" + name.encode() + b"\0" + BINDING)


def test_each_part_makes_other_keys() -> None:
    parts = (CLIENT, ENCLAVE, BINDING)
    made = [SessionKeys.derive(*parts)]
    for k in range(3):
        changed = list(parts)
        changed[k] = b"x" + changed[k][1:]
        made.append(SessionKeys.derive(*changed))
    made.append(SessionKeys.derive(ENCLAVE, CLIENT, BINDING))
    every = [key for keys in made for key in (keys.requests, keys.answers)]
    every += [keys.request_key(header) for keys in made for header in (b"1", b"2")]
    every += [keys.answer_key(header) for keys in made for header in (b"1", b"2")]
    assert all(len(key) == 32 for key in every)
    assert all(a != b for a, b in itertools.combinations(every, 2))


def test_a_header_makes_the_same_keys_whatever_came_before() -> None:
    keys = SessionKeys.derive(CLIENT, ENCLAVE, BINDING)
    for header in (b"1", b"2", b"1"):
        assert keys.request_key(header) == hmac.digest(keys.requests, header, hashlib.sha256)
        assert keys.answer_key(header) == hmac.digest(keys.answers, header, hashlib.sha256)


@pytest.mark.parametrize("parts", [(b"", ENCLAVE), (CLIENT, b"short"), (CLIENT + b"x", ENCLAVE[1:])])
def test_secrets_of_another_length(parts: tuple[bytes, bytes]) -> None:
    with pytest.raises(SealedRequestError, match="32 bytes"):
        SessionKeys.derive(*parts, BINDING)


def test_a_message_opens_under_its_key_and_header_alone() -> None:
    keys = SessionKeys.derive(CLIENT, ENCLAVE, BINDING)
    key = keys.request_key(b"header")
    sealed = seal_message(key, b"text", b"header")
    assert len(sealed) == len(b"text") + MESSAGE_OVERHEAD_BYTES
    assert open_message(key, sealed, b"header") == b"text"
    for wrong in (
        (keys.answer_key(b"header"), sealed, b"header"),
        (key, sealed, b"other"),
        (key, sealed[:-1], b"header"),
        (key, b"", b"header"),
    ):
        with pytest.raises(SealedRequestError):
            open_message(*wrong)


def test_keys_do_not_show_themselves() -> None:
    keys = SessionKeys.derive(CLIENT, ENCLAVE, BINDING)
    assert keys.requests.hex() not in repr(keys)
    assert repr(keys.requests) not in repr(keys)
