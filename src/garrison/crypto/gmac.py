"""GMAC: a keyed tag over bytes, AES-256-GCM with nothing to encrypt and the bytes as associated data (NIST SP 800-38D).

One key a process, made when it starts; it never leaves, and neither do the tags. Each number is used as a nonce for one message alone.
Computing the tag of *changed* bytes under the same number reveals nothing as long as that tag stays inside too: what can be seen from
outside is only whether it was equal.
"""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Buffer = bytes | bytearray | memoryview
TAG_BYTES = 16
_NONCE_BYTES = 12


class Gmac:
    """Tags under a fresh key."""

    def __init__(self) -> None:
        self._cipher = AESGCM(AESGCM.generate_key(256))

    def tag(self, number: int, data: Buffer) -> bytes:
        """The tag of a message.

        Args:
            number: which message, 0 to 2**96 - 1; two different genuine messages must never have the same.
            data: the message; it is not copied.

        Returns:
            `TAG_BYTES` bytes, to be kept secret.
        """
        return self._cipher.encrypt(number.to_bytes(_NONCE_BYTES, "big"), b"", data)

    def holds(self, number: int, data: Buffer, tag: bytes) -> bool:
        """Whether the message is the one that was tagged, compared in constant time."""
        return hmac.compare_digest(self.tag(number, data), tag)
