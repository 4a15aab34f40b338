"""The tag is GMAC, and a flipped bit, another number or another key gives another."""

from __future__ import annotations

import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from garrison.crypto.gmac import TAG_BYTES, Gmac


def test_it_is_gcm_without_a_plaintext(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the library's other interface to GCM, with a key that the test knows."""
    key, data = bytes(range(32)), b"chunk" * 1000
    monkeypatch.setattr(
        "cryptography.hazmat.primitives.ciphers.aead.AESGCM.generate_key", lambda bits: key[: bits // 8]
    )
    encryptor = Cipher(algorithms.AES(key), modes.GCM((7).to_bytes(12, "big"))).encryptor()
    encryptor.authenticate_additional_data(data)
    encryptor.finalize()
    assert Gmac().tag(7, data) == encryptor.tag
    assert len(encryptor.tag) == TAG_BYTES


def test_every_flipped_bit_changes_it() -> None:
    mac, data = Gmac(), bytearray(os.urandom(97))
    tag = mac.tag(3, data)
    assert mac.holds(3, data, tag)
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        assert not mac.holds(3, data, tag)
        data[bit // 8] ^= 1 << bit % 8
    assert mac.holds(3, data, tag)


def test_number_length_and_key_count() -> None:
    mac, data = Gmac(), os.urandom(64)
    tag = mac.tag(3, data)
    assert not mac.holds(4, data, tag)
    assert not mac.holds(3, data[:-1], tag)
    assert not mac.holds(3, data + b"\0", tag)
    assert not Gmac().holds(3, data, tag)
