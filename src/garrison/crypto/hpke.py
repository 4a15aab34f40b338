"""Hybrid public key encryption (RFC 9180), single shot, for sealed requests; AES-256-GCM under a one-time key for their answers.

    pair = KeyPair.generate(PREFERRED)
    sealed = seal(pair.suite, pair.public, b"plaintext", info)
    pair.open(sealed, info)

Two suites, both with HKDF-SHA256 and AES-256-GCM: "X25519", and "MLKEM768-X25519", the hybrid with a post-quantum key exchange,
where the installed library has it. The library's single shot carries no associated data, so what has to be bound to a message goes
into `info`, which is part of the key schedule: another `info`, and the message does not open.

Not covered: who sealed a message (base mode; anybody can who has the public key), and a private key that leaks opens all that was
sealed to it. The keys' memory is not wiped when they are dropped.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from garrison.errors import ConfigError, ProofError, SealedRequestError, ServiceError

try:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
except ImportError:  # an older library, or one over an OpenSSL without it
    _HYBRID_MODULE = False
else:
    _HYBRID_MODULE = hasattr(hpke, "MLKEM768X25519PrivateKey")

X25519, HYBRID = "X25519", "MLKEM768-X25519"
ONE_TIME_KEY_BYTES = 32
ANSWER_OVERHEAD_BYTES = 28
"""How much longer an answer gets under `seal_answer`: nonce and tag."""

_X25519_BYTES, _MLKEM768_BYTES = 32, 1184
_NONCE_BYTES, _TAG_BYTES = 12, 16
_KEY_BYTES = {X25519: _X25519_BYTES, HYBRID: _MLKEM768_BYTES + _X25519_BYTES}
_ENCAPSULATED_BYTES = {X25519: 32, HYBRID: 1088 + 32}


def overhead(suite: str) -> int:
    """How much longer a message of that suite is than its plaintext, in bytes."""
    return encapsulated_bytes(suite) + _TAG_BYTES


def encapsulated_bytes(suite: str) -> int:
    """Length of the encapsulated key with which a message of that suite begins."""
    return _ENCAPSULATED_BYTES[_known(suite)]


def public_bytes(suite: str) -> int:
    """Length of a public key of that suite."""
    return _KEY_BYTES[_known(suite)]


@dataclass(frozen=True, slots=True, repr=False)
class KeyPair:
    """A private key and its public half.

    Attributes:
        suite: its name.
        public: the public key as it travels: 32 bytes for X25519; for the hybrid the 1184 bytes of ML-KEM-768 before those.
    """

    suite: str
    public: bytes
    _private: Any

    @classmethod
    def generate(cls, suite: str) -> KeyPair:
        """A fresh pair.

        Raises:
            ConfigError: the suite is unknown, or the installed library does not have it.
        """
        classic = X25519PrivateKey.generate()
        if _known(suite) == X25519:
            return cls(suite, classic.public_key().public_bytes_raw(), classic)
        _check_hybrid()
        lattice = MLKEM768PrivateKey.generate()
        public = lattice.public_key().public_bytes_raw() + classic.public_key().public_bytes_raw()
        return cls(suite, public, hpke.MLKEM768X25519PrivateKey(lattice, classic))

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """The plaintext of a message.

        Raises:
            SealedRequestError: not sealed to this key, not under this `info`, or changed.
        """
        try:
            plain: bytes = _suite(self.suite).decrypt(sealed, self._private, info)
        except (InvalidTag, ValueError) as error:
            raise SealedRequestError("the sealed request does not open: it was changed, or sealed otherwise") from error
        return plain


def seal(suite: str, public: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Seal a message to the holder of a key.

    Raises:
        ConfigError: the suite is unknown, or the installed library does not have it.
        ServiceError: `public` is no key of that suite.
    """
    key = _public_key(_known(suite), public)
    try:
        sealed: bytes = _suite(suite).encrypt(plaintext, key, info)
    except ValueError as error:  # such as a point of small order
        raise ServiceError(f"nothing can be sealed to the service's {suite} key") from error
    return sealed


def seal_answer(key: bytes, plaintext: bytes, label: bytes) -> bytes:
    """AES-256-GCM with a random nonce in front. `key` must be used for one answer only; `label` is authenticated too.

    Raises:
        SealedRequestError: the key, which the client chose, has not `ONE_TIME_KEY_BYTES` bytes.
    """
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + _cipher(key).encrypt(nonce, plaintext, label)


def open_answer(key: bytes, sealed: bytes, label: bytes) -> bytes:
    """The plaintext of `seal_answer`.

    Raises:
        ProofError: another key or label, or the answer was changed. It must not be used.
    """
    try:
        return _cipher(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], label)
    except (InvalidTag, ValueError) as error:
        raise ProofError("the sealed answer does not open: it was changed, or belongs to another request") from error


def available() -> tuple[str, ...]:
    """The suites that the installed library has, the preferred one first."""
    return (HYBRID, X25519) if _has_hybrid() else (X25519,)


def _has_hybrid() -> bool:
    if not _HYBRID_MODULE:
        return False
    try:
        MLKEM768PrivateKey.generate()
    except UnsupportedAlgorithm:
        return False
    return True


def _check_hybrid() -> None:
    if HYBRID not in AVAILABLE:
        raise ConfigError(f"the installed cryptography library does not have {HYBRID}; version 48 or newer may")


def _known(suite: str) -> str:
    if suite not in _KEY_BYTES:
        raise ConfigError(f"unknown suite {suite!r}; known are {', '.join(_KEY_BYTES)}")
    return suite


def _suite(name: str) -> hpke.Suite:
    return _SUITES[name]


@lru_cache(maxsize=64)  # a client seals to the same key over and over
def _public_key(suite: str, public: bytes) -> Any:
    if len(public) != _KEY_BYTES[suite]:
        raise ServiceError(f"expected a {suite} key of {_KEY_BYTES[suite]} bytes, found {len(public)}")
    try:
        if suite == X25519:
            return X25519PublicKey.from_public_bytes(public)
        _check_hybrid()
        lattice = MLKEM768PublicKey.from_public_bytes(public[:_MLKEM768_BYTES])
        classic = X25519PublicKey.from_public_bytes(public[_MLKEM768_BYTES:])
        return hpke.MLKEM768X25519PublicKey(lattice, classic)
    except ValueError as error:
        raise ServiceError(f"the service's {suite} key is none") from error


def _cipher(key: bytes) -> AESGCM:
    if len(key) != ONE_TIME_KEY_BYTES:
        raise SealedRequestError(f"expected a one-time key of {ONE_TIME_KEY_BYTES} bytes, found {len(key)}")
    return AESGCM(key)


AVAILABLE = available()
PREFERRED = AVAILABLE[0]
_SUITES = {X25519: hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)}
if HYBRID in AVAILABLE:
    _SUITES[HYBRID] = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
