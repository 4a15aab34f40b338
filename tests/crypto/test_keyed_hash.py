"""The hash is GMAC under BLAKE2b, and a flipped bit, another place or another key gives another."""

from __future__ import annotations

import hashlib
import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from garrison.crypto.keyed_hash import KEY_BYTES, KeyedHash

KEY = bytes(range(KEY_BYTES))


def test_it_is_gmac_of_each_part_under_blake2b() -> None:
    """Against the library's other interface to GCM."""
    keys = hashlib.blake2b(key=KEY, digest_size=64, person=b"garrison-hash").digest()
    parts, tags = [b"first" * 100, b"", b"third" * 1000], []
    for number, part in enumerate(parts):
        encryptor = Cipher(algorithms.AES(keys[:32]), modes.GCM(number.to_bytes(12, "big"))).encryptor()
        encryptor.authenticate_additional_data(part)
        encryptor.finalize()
        tags.append(encryptor.tag)
    expected = hashlib.blake2b(b"".join(tags), key=keys[32:], digest_size=8).digest()
    assert KeyedHash(KEY, 8).digest(parts) == expected


def test_every_flipped_bit_changes_it() -> None:
    keyed, data = KeyedHash(KEY, 8), bytearray(os.urandom(97))
    found = keyed.digest([data])
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        assert keyed.digest([data]) != found
        data[bit // 8] ^= 1 << bit % 8
    assert keyed.digest([data]) == found


def test_place_length_and_key_count() -> None:
    keyed, a, b = KeyedHash(KEY, 8), os.urandom(64), os.urandom(64)
    found = keyed.digest([a, b])
    others = [[b, a], [a], [a, b, b""], [a[:-1], b], [a + b"\0", b], [a + b]]
    assert found not in [keyed.digest(parts) for parts in others]
    assert found != KeyedHash(bytes(KEY_BYTES), 8).digest([a, b])
    assert found == KeyedHash(KEY, 8).digest([a, b])


def test_equal_short_digests_are_no_equal_tags() -> None:
    """With digests of one byte many messages agree; what is appended to both tells them apart again, which it would not if the digest were linear."""
    short = KeyedHash(KEY, 1)
    messages = [os.urandom(32) for _ in range(2000)]
    first = short.digest([messages[0]])
    alike = [m for m in messages if short.digest([m]) == first]
    assert len(alike) > 2
    assert len({short.digest([m, b"more"]) for m in alike}) > 1


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_has_its_length(size: int) -> None:
    with pytest.raises(ValueError, match=f"32 bytes, found {size}"):
        KeyedHash(bytes(size), 8)
