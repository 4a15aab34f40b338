"""Ed25519 (RFC 8032) for the service's answers."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from garrison.errors import ProofError

PUBLIC_KEY_BYTES = 32


class AnswerSigner:
    """A signing key that is made at start and never leaves the process.

    Args:
        secret: 32 random bytes to make it of, where several processes must sign alike; None for a fresh key.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._key = Ed25519PrivateKey.generate() if secret is None else Ed25519PrivateKey.from_private_bytes(secret)
        self.public_key = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def verify_ed25519(public_key: bytes, signature: bytes, message: bytes) -> None:
    """Check a signature.

    Raises:
        ProofError: the key is no key, or the signature does not hold.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise ProofError(f"expected a signing key of {PUBLIC_KEY_BYTES} bytes, found {len(public_key)}")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except InvalidSignature as error:
        raise ProofError("the signature of the answer does not hold under the service's signing key") from error
