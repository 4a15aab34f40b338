"""Sealed snapshots of what the guard remembers: AES-256-GCM under a key that HKDF-SHA256 (RFC 5869) derives for one model and one guard.

The model's and the guard's digest and a counter stand outside, so that a refusal can say what is wrong, and are authenticated with the
rest. NOT checked: whether a snapshot is the latest. Whoever stores them can bring back an older one.
"""

from __future__ import annotations

import secrets

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from garrison.errors import StateError

KEY_BYTES = 32
OVERHEAD_BYTES = 1024
"""A sealed snapshot is at most so much longer than what is in it."""
_VERSION = 1
_NONCE_BYTES = 12


class _Outside(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    manifest: str
    guard: str
    counter: int
    nonce: bytes


class _Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    outside: bytes
    sealed: bytes


_ENVELOPE = msgspec.msgpack.Decoder(_Envelope)
_OUTSIDE = msgspec.msgpack.Decoder(_Outside)


class SnapshotSeal:
    """Seals and opens snapshots of one model behind one guard.

    Args:
        secret: 32 bytes that stay the same from start to start.
        manifest, guard: digests, in hex.
    """

    def __init__(self, secret: bytes, manifest: str, guard: str) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"expected a secret of {KEY_BYTES} bytes, found {len(secret)}")
        info = b"garrison caller state\0" + f"{manifest}\0{guard}".encode()
        self._cipher = AESGCM(HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(secret))
        self._manifest, self._guard = manifest, guard

    def seal(self, state: bytes, counter: int) -> bytes:
        """A snapshot. The nonce is random: some 2**32 snapshots under one secret are safe, one a second for 136 years."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        outside = msgspec.msgpack.encode(_Outside(_VERSION, self._manifest, self._guard, counter, nonce))
        return msgspec.msgpack.encode(_Envelope(outside, self._cipher.encrypt(nonce, state, outside)))

    def open(self, snapshot: bytes) -> tuple[bytes, int]:
        """The state in a snapshot, and its counter.

        Raises:
            StateError: it is another model's or another guard's, was changed, or sealed under another secret.
        """
        try:
            envelope = _ENVELOPE.decode(snapshot)
            outside = _OUTSIDE.decode(envelope.outside)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StateError("the snapshot of caller state has another form than snapshots have") from error
        if outside.version != _VERSION or len(outside.nonce) != _NONCE_BYTES or outside.counter < 0:
            raise StateError("the snapshot of caller state has another version")
        if outside.manifest != self._manifest:
            raise StateError("the snapshot of caller state is another model's")
        if outside.guard != self._guard:
            raise StateError("the snapshot of caller state is of another guard: it was tightened or sealed anew")
        try:
            return self._cipher.decrypt(outside.nonce, envelope.sealed, envelope.outside), outside.counter
        except InvalidTag as error:
            raise StateError(
                "the snapshot of caller state does not open: changed, or sealed with another key"
            ) from error
