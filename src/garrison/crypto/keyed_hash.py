"""A keyed hash of many bytes: a pseudorandom function several times faster than a cryptographic hash, and as hard to deceive without the key as the digest is long.

    1 each part    GMAC (NIST SP 800-38D), with the part's number as its nonce: a polynomial over the part, evaluated at a secret point
    2 all tags     BLAKE2b under another key: a pseudorandom function of what the polynomials come to (Wegman and Carter, JCSS 1981)

Two different parts of at most n bytes, made without knowing the key, have equal tags with a probability of at most (ceil(n / 16) + 1) / 2**128, as far as AES is a pseudorandom permutation; two different lists of tags
have equal digests with 2**-8 for each byte of the digest.
It does not help to have found two messages with equal digests: they are equal by the second step, which says nothing of the first key.

The numbers come again with each message. As a *signature* GMAC is broken by that: two tags under one nonce give the secret point away. Here no tag leaves `KeyedHash.digest`. What leaves is the second step's:
as long as no two different messages had equal lists of tags, digests are those of BLAKE2b under a secret key, of messages that are all different, and so nothing but random numbers to whoever chose the messages,
one after the other, and saw each digest. Of q messages any two have equal tags with a probability of q**2 / 2 times the above: 2**-34 for 2**40 messages of 600 KB. So digests may be seen, and used as random numbers.

Does not check: that parts are cut alike. Messages of one kind must be cut at the same places, else equal ones have different digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Buffer = bytes | bytearray | memoryview
KEY_BYTES = 32
_NONCE_BYTES = 12


class KeyedHash:
    """Digests under one key.

    Args:
        key: `KEY_BYTES` random bytes.
        size: bytes of a digest, 1 to 64.
    """

    def __init__(self, key: bytes, size: int) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the key of a hash must have {KEY_BYTES} bytes, found {len(key)}")
        keys = hashlib.blake2b(key=key, digest_size=2 * KEY_BYTES, person=b"garrison-hash").digest()
        self._cipher = AESGCM(keys[:KEY_BYTES])
        self._outer = hashlib.blake2b(key=keys[KEY_BYTES:], digest_size=size)

    def digest(self, parts: Iterable[Buffer]) -> bytes:
        """The digest of a message.

        Args:
            parts: the message in pieces; they are not copied.
        """
        outer = self._outer.copy()
        for number, part in enumerate(parts):
            outer.update(self._cipher.encrypt(number.to_bytes(_NONCE_BYTES, "big"), b"", part))
        return outer.digest()
