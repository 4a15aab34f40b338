"""Requests within a session, after its first: no public key is touched any more. Pure functions over bytes.

    request   "GSM1" | session, 16 bytes | counter, 8 bytes | salt, 16 bytes | AES-256-GCM over letter
    answer    as to any sealed request, under a one-time key

A session begins with a sealed request whose head holds an `offer` (see `garrison.protocol.sealed`): 32 secret bytes, and a public key
that the client made for this purpose. The answer's head holds the `Grant`: 32 secret bytes of the enclave's, sealed to that public key
by HPKE. Both secrets, and all that the session is bound to, make its keys (`garrison.crypto.sessions`). So whoever gets the
enclave's long-lived private key afterwards reads the first request and its answer, and nothing of the rest.

The 44 bytes in front of a request are its header. Each header makes a key for its request and another for the answer, so a request
cannot be put into another session or place, and an answer belongs to one request. All lengths are big endian.

Invariant: decoding is strict, as for every letter.
"""

from __future__ import annotations

import hashlib
import secrets
import struct

import msgspec

from garrison.crypto.hpke import KeyPair, public_bytes, seal
from garrison.crypto.sessions import SECRET_BYTES, SessionKeys, open_message, seal_message
from garrison.errors import ProofError, SealedRequestError, ServiceError
from garrison.protocol.letters import read_letter, write_letter
from garrison.protocol.sealed import Grant

SESSION_BYTES = 16
_SALT_BYTES = 16
_MAGIC = b"GSM1"
_HEADER = struct.Struct(f">4s{SESSION_BYTES}sQ{_SALT_BYTES}s")
HEADER_BYTES = _HEADER.size
MOST_COUNTER = 2**63
_BINDING_LABEL = b"garrison session binding v1\0"
_GRANT_LABEL = b"garrison session grant v1\0"
_LENGTH = struct.Struct(">I")


class SessionHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a request within a session says beside its body. Who asks is bound to the session.

    Attributes:
        json_bytes: length of the body's JSON part, -1 where all of it is JSON.
        nonce: bound into the signed statement; fresh for each request.
        time: seconds since the epoch, UTC, by the client's clock.
        work: a proof of work over the body (see `garrison.protocol.work`); "" for none.
    """

    json_bytes: int
    nonce: str
    time: int
    work: str = ""


_DECODER = msgspec.msgpack.Decoder(SessionHead)


class Bound(msgspec.Struct, frozen=True):
    """What a session is bound to, beside its first request and its name.

    Attributes:
        signing: public key that the enclave signs answers with; it makes one at each start.
        manifest, guard: SHA-256 in hex, of the attested model.
        caller: as the first request names it inside.
    """

    signing: bytes
    manifest: str
    guard: str
    caller: str

    def binding(self, first: bytes, session: bytes) -> bytes:
        """32 bytes that differ where anything differs; `first` is the whole envelope that began the session (and names the key set)."""
        parts = (hashlib.sha256(first).digest(), session, self.signing, *map(str.encode, self._names()))
        return hashlib.sha256(b"".join((_BINDING_LABEL, *(_LENGTH.pack(len(p)) + p for p in parts)))).digest()

    def _names(self) -> tuple[str, str, str]:
        return self.manifest, self.guard, self.caller


def offer_bytes(suite: str) -> int:
    """Length of an offer."""
    return SECRET_BYTES + public_bytes(suite)


def grant_session(
    suite: str, offer: bytes, first: bytes, bound: Bound, *, requests: int, seconds: int
) -> tuple[Grant, SessionKeys]:
    """The enclave's side: a fresh session for whoever made the offer, and its keys.

    Args:
        first: the whole envelope that the offer came in.
        requests, seconds: what the session is good for.

    Raises:
        ServiceError: the offer is none.
    """
    session, secret = secrets.token_bytes(SESSION_BYTES), secrets.token_bytes(SECRET_BYTES)
    binding = bound.binding(first, session)
    sealed = seal(suite, offer[SECRET_BYTES:], secret, _GRANT_LABEL + binding)
    keys = SessionKeys.derive(offer[:SECRET_BYTES], secret, binding)
    return Grant(session, requests, seconds, sealed), keys


class Offer:
    """The client's side of a session that may begin: a key pair for this purpose alone.

    Args:
        suite: the enclave's.
    """

    def __init__(self, suite: str) -> None:
        self._pair = KeyPair.generate(suite)
        self._secret = secrets.token_bytes(SECRET_BYTES)

    @property
    def content(self) -> bytes:
        """What goes into the first request's head."""
        return self._secret + self._pair.public

    def take(self, grant: Grant, first: bytes, bound: Bound) -> SessionKeys:
        """The keys of the session that was granted.

        Raises:
            ProofError: the grant is not for this offer.
        """
        binding = bound.binding(first, grant.session)
        try:
            secret = self._pair.open(grant.secret, _GRANT_LABEL + binding)
            return SessionKeys.derive(self._secret, secret, binding)
        except SealedRequestError as error:
            raise ProofError("the session that the service offers is not for this request") from error


def within_session(envelope: bytes) -> bool:
    """Whether an envelope says that it belongs to a session."""
    return envelope.startswith(_MAGIC)


def read_place(envelope: bytes) -> tuple[bytes, int]:
    """Session and counter of a request within a session.

    Raises:
        SealedRequestError: it is none.
    """
    if len(envelope) > HEADER_BYTES:
        magic, session, counter, _ = _HEADER.unpack_from(envelope)
        if magic == _MAGIC:
            return session, counter
    raise SealedRequestError(f"a sealed request within a session has more than {HEADER_BYTES} bytes")


def seal_within(keys: SessionKeys, session: bytes, counter: int, head: SessionHead, body: bytes) -> tuple[bytes, bytes]:
    """A request within a session, and the one-time key that its answer will come under.

    Raises:
        ServiceError: a session's name or counter that is none.
    """
    if len(session) != SESSION_BYTES or not 0 <= counter < MOST_COUNTER:
        raise ServiceError(f"expected a session of {SESSION_BYTES} bytes and a counter from 0")
    header = _HEADER.pack(_MAGIC, session, counter, secrets.token_bytes(_SALT_BYTES))
    sealed = seal_message(keys.request_key(header), write_letter(head, body), header)
    return header + sealed, keys.answer_key(header)


def open_within(keys: SessionKeys, envelope: bytes) -> tuple[SessionHead, bytes, bytes]:
    """Head, body, and the one-time key for the answer. Whether it was opened before is not checked here.

    Raises:
        SealedRequestError: it was changed, is of another session, or is not in its one form.
    """
    header = envelope[:HEADER_BYTES]
    letter = open_message(keys.request_key(header), memoryview(envelope)[HEADER_BYTES:], header)
    try:
        head, body = read_letter(letter, _DECODER)
    except ValueError as error:
        raise SealedRequestError(f"the sealed request cannot be read: {error}") from error
    return head, body, keys.answer_key(header)
