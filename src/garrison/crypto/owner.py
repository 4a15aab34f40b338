"""The owner's key: an ECDSA P-256 key in standard PEM files, as OpenSSF model signing uses it.

The private key signs bundles. From it each model's misinformation key is derived (HKDF-SHA256, RFC 5869), so that an owner keeps
one secret; the server is given the derived key alone and can sign nothing.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from garrison.errors import KeyFileError

MISINFORMATION_KEY_BYTES = 32


class OwnerPublicKey:
    """A key that bundles are checked against. `fingerprint` is the SHA-256 of its PEM form, in hex."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._key = key
        self.pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.fingerprint = hashlib.sha256(self.pem).hexdigest()

    @classmethod
    def from_pem(cls, pem: bytes) -> OwnerPublicKey:
        """Read a public key.

        Raises:
            KeyFileError: not PEM, a private key, or not on the curve P-256.
        """
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, TypeError) as error:
            raise KeyFileError(
                "expected a public key in PEM form (OWNER.pub, as `garrison keygen` writes it)"
            ) from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise KeyFileError("expected an ECDSA key on the curve P-256; `garrison keygen` makes one")
        return cls(key)

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature (DER) over the message holds under ECDSA with SHA-256."""
        try:
            self._key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class OwnerKey:
    """The owner's private key. Belongs on the machine where models are sealed, not on the server."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = OwnerPublicKey(key.public_key())

    @classmethod
    def generate(cls) -> OwnerKey:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes, passphrase: bytes | None = None) -> OwnerKey:
        """Read a private key in PKCS#8 PEM form.

        Raises:
            KeyFileError: not PEM, a missing or wrong passphrase, or not on the curve P-256.
        """
        try:
            key = serialization.load_pem_private_key(pem, passphrase)
        except TypeError as error:
            hint = (
                "is encrypted and no passphrase was given"
                if passphrase is None
                else "is not encrypted, but a passphrase was given"
            )
            raise KeyFileError(f"the owner's key {hint}") from error
        except ValueError as error:
            raise KeyFileError(
                "the owner's key cannot be read: not a private key in PEM form, or the passphrase is wrong"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise KeyFileError("expected an ECDSA key on the curve P-256; `garrison keygen` makes one")
        return cls(key)

    def to_pem(self, passphrase: bytes | None = None) -> bytes:
        """PKCS#8 PEM, encrypted where a passphrase is given."""
        protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            protection = serialization.BestAvailableEncryption(passphrase)
        return self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)

    def sign(self, message: bytes) -> bytes:
        """ECDSA with SHA-256, DER."""
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))

    def misinformation_key(self, model: str) -> bytes:
        """The 32-byte key of one model, by its name: the same for all its versions. Versions that differ in f' or in calibrated
        values answer differently all the same, so serving two at once shows which inputs are misinformed."""
        secret = self._key.private_numbers().private_value.to_bytes(32, "big")
        info = b"garrison misinformation key\0" + model.encode()
        return HKDF(hashes.SHA256(), MISINFORMATION_KEY_BYTES, salt=None, info=info).derive(secret)


def key_commitment(key: bytes) -> str:
    """A value that tells whether a key is the right one and nothing else about it; it stands in the manifest."""
    return hmac.new(key, b"garrison key commitment", hashlib.sha256).hexdigest()
