"""The sealed envelope: what a client sends that only the enclave can read, and what comes back. Pure functions over bytes.

    request   "GSR2" | epoch, 4 bytes | key id, 8 bytes | HPKE message over letter
    answer    "GSA2" | AES-256-GCM, under the letter's one-time key, over a letter with another head

A letter is a head and a body, padded (`garrison.protocol.letters`). The 16 bytes in front of a request are its HPKE `info` (after a label), so that
they cannot be changed. A refusal is an answer like any other; the host sees that there is one, and its length.

This is the first request of a session, with all that is asked in it already; those that follow are in
`garrison.protocol.sealed_session`. Where no session is offered or granted, each request is a first one.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache

import msgspec

from garrison.crypto.hpke import ONE_TIME_KEY_BYTES, encapsulated_bytes, open_answer, seal, seal_answer
from garrison.errors import ProofError, SealedRequestError
from garrison.protocol.letters import read_letter, write_letter

CONTENT_TYPE = "application/vnd.garrison.sealed"
HEADER_BYTES = 16
_MAGIC, _ANSWER_MAGIC = b"GSR2", b"GSA2"
_LABEL = b"garrison sealed request v2\0"
_ANSWER_LABEL = b"garrison sealed answer v2\0"
_HEADER = struct.Struct(">4sI8s")
_KEY_ID_BYTES, _MARK_BYTES = 8, 16


class RequestHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a sealed request says beside its body.

    Attributes:
        caller: the API key's id, as the server is to name the caller; empty where the service uses no keys.
        json_bytes: length of the body's JSON part, -1 where all of it is JSON.
        nonce: bound into the signed statement; fresh for each request.
        answer_key: 32 random bytes, used for this request's answer and never again.
        time: seconds since the epoch, UTC, by the client's clock.
        work: a proof of work over the body (see `garrison.protocol.work`); "" for none.
        offer: of a session (see `garrison.protocol.sealed_session`); empty for none.
    """

    caller: str
    json_bytes: int
    nonce: str
    answer_key: bytes
    time: int
    work: str = ""
    offer: bytes = b""


class Grant(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A session that the enclave keeps from now on.

    Attributes:
        session: its name, random, 16 bytes.
        requests: counters below this are taken.
        seconds: how long, from now.
        secret: the enclave's part of the session's secret, sealed to the key that was offered.
    """

    session: bytes
    requests: int
    seconds: int
    secret: bytes


class AnswerHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a sealed answer says beside its body; the fields of `garrison.protocol.messages.Reply`.

    Attributes:
        code: "" where the body is an inference response, else why there is none.
        detail: the error, in words.
        json_bytes: length of the body's JSON part, -1 where all of it is JSON.
        proof: the signed statement over request body and answer body; empty for an error.
        grant: the session that was offered; None where it was not, or there is no room.
    """

    code: str
    detail: str
    json_bytes: int
    proof: bytes
    grant: Grant | None = None


_REQUEST_DECODER = msgspec.msgpack.Decoder(RequestHead)
_ANSWER_DECODER = msgspec.msgpack.Decoder(AnswerHead)


class Outside(msgspec.Struct, frozen=True):
    """What everybody sees of a sealed request: which key it is for."""

    epoch: int
    key_id: bytes

    def header(self) -> bytes:
        return _HEADER.pack(_MAGIC, self.epoch, self.key_id)


@lru_cache(maxsize=64)  # a client seals to the same key over and over
def key_id(suite: str, public: bytes) -> bytes:
    """Tells one HPKE key from another, also over restarts of an enclave: 8 bytes."""
    return hashlib.sha256(suite.encode() + b"\0" + public).digest()[:_KEY_ID_BYTES]


def seal_request(suite: str, public: bytes, epoch: int, head: RequestHead, body: bytes) -> bytes:
    """The envelope over a request.

    Raises:
        ServiceError: the public key is none.
        ConfigError: the suite is not known here.
    """
    header = Outside(epoch, key_id(suite, public)).header()
    return header + seal(suite, public, write_letter(head, body), _LABEL + header)


def read_outside(envelope: bytes) -> Outside:
    """Which key an envelope is for.

    Raises:
        SealedRequestError: it is no envelope.
    """
    if len(envelope) <= HEADER_BYTES:
        raise SealedRequestError(f"a sealed request has more than {HEADER_BYTES} bytes, found {len(envelope)}")
    magic, epoch, key = _HEADER.unpack_from(envelope)
    if magic != _MAGIC:
        raise SealedRequestError(f"expected a sealed request that begins with {_MAGIC.decode()}")
    return Outside(epoch, key)


def split_envelope(envelope: bytes) -> tuple[bytes, bytes]:
    """The HPKE `info` and message of an envelope."""
    return _LABEL + envelope[:HEADER_BYTES], envelope[HEADER_BYTES:]


def replay_mark(suite: str, envelope: bytes) -> bytes:
    """What tells an envelope from all others that open: 16 bytes, a digest of its front and its encapsulated key.

    The key schedule binds the encapsulated key, and the message is authenticated under what comes of it: who changes any byte of either has an
    envelope that does not open. Only its sealer can make a second message under the same encapsulated key; that one counts as a replay.
    """
    return hashlib.sha256(envelope[: HEADER_BYTES + encapsulated_bytes(suite)]).digest()[:_MARK_BYTES]


def read_request(letter: bytes) -> tuple[RequestHead, bytes]:
    """Head and body of an opened request.

    Raises:
        SealedRequestError: it is not in its one form.
    """
    try:
        head, body = read_letter(letter, _REQUEST_DECODER)
    except ValueError as error:
        raise SealedRequestError(f"the sealed request cannot be read: {error}") from error
    if len(head.answer_key) != ONE_TIME_KEY_BYTES:
        raise SealedRequestError(f"expected an answer key of {ONE_TIME_KEY_BYTES} bytes, found {len(head.answer_key)}")
    return head, body


def write_answer(answer_key: bytes, head: AnswerHead, body: bytes) -> bytes:
    """The sealed answer."""
    return _ANSWER_MAGIC + seal_answer(answer_key, write_letter(head, body), _ANSWER_LABEL)


def read_answer(answer_key: bytes, sealed: bytes) -> tuple[AnswerHead, bytes]:
    """Head and body of a sealed answer.

    Raises:
        ProofError: it was changed, belongs to another request, or is not in its one form.
    """
    if not sealed.startswith(_ANSWER_MAGIC):
        raise ProofError("the service's answer is not sealed")
    letter = open_answer(answer_key, sealed[len(_ANSWER_MAGIC) :], _ANSWER_LABEL)
    try:
        return read_letter(letter, _ANSWER_DECODER)
    except ValueError as error:
        raise ProofError(f"the sealed answer cannot be read: {error}") from error
