"""Both suites of HPKE: what was sealed opens, and nothing else does."""

from __future__ import annotations

import pytest

from garrison.crypto.hpke import (
    ANSWER_OVERHEAD_BYTES,
    AVAILABLE,
    HYBRID,
    PREFERRED,
    X25519,
    KeyPair,
    open_answer,
    overhead,
    seal,
    seal_answer,
)
from garrison.errors import ConfigError, ProofError, SealedRequestError, ServiceError

KEY = bytes(range(32))


@pytest.mark.parametrize("suite", AVAILABLE)
@pytest.mark.parametrize("length", [0, 1, 4096, 600_000])
def test_what_is_sealed_opens(suite: str, length: int) -> None:
    pair, plain = KeyPair.generate(suite), b"\xa5" * length
    sealed = seal(suite, pair.public, plain, b"info")
    assert pair.open(sealed, b"info") == plain
    assert len(sealed) == length + overhead(suite)
    assert sealed != seal(suite, pair.public, plain, b"info")


@pytest.mark.parametrize("suite", AVAILABLE)
def test_no_flipped_byte_opens(suite: str) -> None:
    pair = KeyPair.generate(suite)
    sealed = seal(suite, pair.public, b"plain", b"info")
    for at in range(len(sealed)):
        for flip in (0x01, 0x80):
            changed = sealed[:at] + bytes([sealed[at] ^ flip]) + sealed[at + 1 :]
            with pytest.raises(SealedRequestError):
                pair.open(changed, b"info")
    assert pair.open(sealed, b"info") == b"plain"


@pytest.mark.parametrize("suite", AVAILABLE)
def test_no_other_key_info_or_length_opens(suite: str) -> None:
    pair = KeyPair.generate(suite)
    sealed = seal(suite, pair.public, b"plain", b"info")
    with pytest.raises(SealedRequestError):
        KeyPair.generate(suite).open(sealed, b"info")
    with pytest.raises(SealedRequestError):
        pair.open(sealed, b"inf0")
    for wrong in (b"", sealed[:40], sealed[:-1], sealed + b"\0"):
        with pytest.raises(SealedRequestError):
            pair.open(wrong, b"info")


@pytest.mark.parametrize("suite", AVAILABLE)
def test_a_key_that_is_none(suite: str) -> None:
    good = KeyPair.generate(suite).public
    for bad in (b"", good[:-1], good + b"\0", bytes(len(good))):
        with pytest.raises(ServiceError):
            seal(suite, bad, b"plain", b"info")


def test_suites() -> None:
    assert AVAILABLE[-1] == X25519
    assert AVAILABLE[0] == PREFERRED
    assert (HYBRID in AVAILABLE) == (PREFERRED == HYBRID)
    with pytest.raises(ConfigError, match="unknown suite"):
        KeyPair.generate("ROT13")
    with pytest.raises(ConfigError, match="unknown suite"):
        seal("ROT13", b"", b"", b"")


def test_a_private_key_does_not_show() -> None:
    assert "_private" not in repr(KeyPair.generate(X25519))


def test_answers_open_under_their_key_and_label_alone() -> None:
    sealed = seal_answer(KEY, b"answer", b"label")
    assert len(sealed) == len(b"answer") + ANSWER_OVERHEAD_BYTES
    assert open_answer(KEY, sealed, b"label") == b"answer"
    assert sealed != seal_answer(KEY, b"answer", b"label")
    for at in range(len(sealed)):
        with pytest.raises(ProofError):
            open_answer(KEY, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], b"label")
    for key, content, label in ((bytes(32), sealed, b"label"), (KEY, sealed, b"x"), (KEY, sealed[:20], b"label")):
        with pytest.raises(ProofError):
            open_answer(key, content, label)
    with pytest.raises(SealedRequestError, match="32 bytes"):
        seal_answer(b"short", b"answer", b"label")
