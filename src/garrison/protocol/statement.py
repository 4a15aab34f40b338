"""The enclave's statement about an answer, and one signature over a whole batch of them.

A statement binds the request's digest, the answer's digest, the model, the guard, the time and the client's nonce. The
statements of a batch are the leaves of a Merkle tree (hashed as in RFC 6962, section 2.1); the root is signed once with
Ed25519, and each answer carries its path. A batch of one is signed in the same way, with an empty path.

What a valid proof does *not* say: that the answer is f(x). The guard may have answered with misinformation, and signs that too.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence

import msgspec

from garrison.crypto.canonical import canonical_json
from garrison.crypto.signing import verify_ed25519
from garrison.errors import ProofError

_LABEL = b"garrison signed answers v1\0"
_RECEIPT = b"garrison receipt v1\0"
_LEAF, _NODE = b"\0", b"\1"
_FIRST, _SECOND = b'{"request":"', b'","answer":"'
_FRONT = struct.Struct(f"4x{len(_FIRST)}s64s{len(_SECOND)}s64s")
"""How a proof begins whose statement is of `StatementWriter`: 4 bytes of MessagePack, and the digests of request and answer after what announces them."""


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the enclave says about one answer. Digests are SHA-256 in hex; `time` is in seconds since the epoch, UTC.

    `upstream` stands there only where a gateway signs: the model on another server that computed the answer. Who signs then vouches for
    the guard alone, neither for that model's parameters nor for what became of the input.
    """

    request: str
    answer: str
    model: str
    guard: str
    time: int
    nonce: str
    upstream: str = ""


class Proof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A statement, its place in the batch's tree, the path to the root, and the root's signature."""

    statement: bytes
    index: int
    size: int
    path: tuple[bytes, ...]
    signature: bytes


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Proof)


def sign_batch(statements: Sequence[Statement], sign: Callable[[bytes], bytes]) -> list[bytes]:
    """One encoded proof a statement, with a single call of `sign`."""
    return sign_encoded([canonical_json(statement) for statement in statements], sign)


def sign_encoded(statements: Sequence[bytes], sign: Callable[[bytes], bytes]) -> list[bytes]:
    """As `sign_batch`, for statements that are written already."""
    if not statements:
        return []
    if len(statements) == 1:  # a tree of one leaf
        (alone,) = statements
        return [_ENCODER.encode(Proof(alone, 0, 1, (), sign(_LABEL + _hash(_LEAF + alone))))]
    levels = _levels([_hash(_LEAF + statement) for statement in statements])
    signature = sign(_LABEL + levels[-1][0])
    size, paths = len(statements), _paths(levels)
    return [_ENCODER.encode(Proof(s, i, size, paths[i], signature)) for i, s in enumerate(statements)]


class StatementWriter:
    """Writes the statements of one service, in the bytes of `canonical_json(Statement(...))`, without making one each time.

    Args:
        model, guard, upstream: see `Statement`.
    """

    def __init__(self, model: str, guard: str, upstream: str = "") -> None:
        self.model, self.guard = model, guard
        self._model = f'","model":{_json(model)},"guard":{_json(guard)},"time":'
        self._end = f',"upstream":{_json(upstream)}}}' if upstream else "}"

    def write(self, request: bytes, answer: bytes, time: int, nonce: str) -> bytes:
        """A statement about bodies: their digests are made here."""
        asked, told = hashlib.sha256(request).hexdigest(), hashlib.sha256(answer).hexdigest()
        said = _json(nonce) if nonce else '""'
        return f'{{"request":"{asked}","answer":"{told}{self._model}{time},"nonce":{said}{self._end}'.encode()


def statement_in(proof: bytes) -> bytes:
    """The bytes of the statement in a proof that an enclave of one's own made, as they were signed. Nothing is verified.

    Raises:
        ProofError: it cannot be read.
    """
    try:
        return _DECODER.decode(proof).statement
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProofError("the answer's proof cannot be read") from error


def digests_in(proof: bytes) -> tuple[str, str]:
    """Digests of request and answer in a proof that an enclave of one's own made, in hex. Nothing is verified.

    Reads them where `StatementWriter` puts them, which costs a tenth of decoding the proof; decodes it where they are not there.

    Raises:
        ProofError: it cannot be read.
    """
    if len(proof) >= _FRONT.size:
        first, request, second, answer = _FRONT.unpack_from(proof)
        if first == _FIRST and second == _SECOND:
            return request.decode("ascii"), answer.decode("ascii")
    statement = read_proof(proof)[1]
    return statement.request, statement.answer


def receipt_of(statement: bytes) -> bytes:
    """What a ledger keeps of the answer to a sealed request: a digest of the signed statement, 32 bytes. Who has the proof finds the entry by it.

    The statement holds the client's nonce: where that cannot be guessed, neither can the rest be by who sees the receipt alone.
    """
    return hashlib.sha256(_RECEIPT + statement).digest()


def read_proof(proof: bytes) -> tuple[Proof, Statement]:
    """A proof and its statement, decoded. Nothing is verified.

    Raises:
        ProofError: it cannot be read.
    """
    try:
        decoded = _DECODER.decode(proof)
        return decoded, msgspec.json.decode(decoded.statement, type=Statement)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProofError("the answer's proof cannot be read") from error


def signed_message(proof: Proof) -> bytes:
    """What the signature must be over, for a proof's statement to stand in the batch: the same for all answers of a batch.

    Raises:
        ProofError: the path does not fit the place.
    """
    return _LABEL + _root(_hash(_LEAF + proof.statement), proof)


def check_signature(proof: Proof, public_key: bytes) -> None:
    """Check that a proof's statement was signed under a key.

    Raises:
        ProofError: it was not.
    """
    verify_ed25519(public_key, proof.signature, signed_message(proof))


def verify_answer(proof: bytes, public_key: bytes, *, request: bytes, answer: bytes, nonce: str) -> Statement:
    """Check that an answer is the one that the holder of the key gave to this request.

    Args:
        proof: as it came with the answer.
        public_key: the service's signing key, 32 bytes. Whether that key belongs to an enclave is not checked here.
        request, answer: the bodies' bytes as sent and received.
        nonce: as sent; a fresh one makes an old answer unusable.

    Raises:
        ProofError: anything does not fit. The caller must not use the answer.
    """
    decoded, statement = read_proof(proof)
    check_signature(decoded, public_key)
    found = (statement.request, statement.answer, statement.nonce)
    expected = (hashlib.sha256(request).hexdigest(), hashlib.sha256(answer).hexdigest(), nonce)
    for name, mine, theirs in zip(("request", "answer", "nonce"), expected, found, strict=True):
        if mine != theirs:
            raise ProofError(
                f"the signed {name} is not the one that was sent or received: expected {mine}, found {theirs}"
            )
    return statement


def _json(text: str) -> str:
    return canonical_json(text).decode()


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _levels(leaves: list[bytes]) -> list[list[bytes]]:
    """The tree from leaves to root. A node without a sibling moves up as it is."""
    levels = [leaves]
    while len(levels[-1]) > 1:
        below = levels[-1]
        pairs = [_hash(_NODE + below[i] + below[i + 1]) for i in range(0, len(below) - 1, 2)]
        levels.append(pairs + below[len(pairs) * 2 :])
    return levels


def _paths(levels: list[list[bytes]]) -> list[tuple[bytes, ...]]:
    """Each leaf's path to the root: from the root down, a node's path is its sibling and then its parent's path."""
    paths: list[tuple[bytes, ...]] = [()]
    for level in reversed(levels[:-1]):
        alone = len(level) - 1 if len(level) & 1 else -1
        paths = [paths[i >> 1] if i == alone else (level[i ^ 1], *paths[i >> 1]) for i in range(len(level))]
    return paths


def _root(leaf: bytes, proof: Proof) -> bytes:
    index, width, node, rest = proof.index, proof.size, leaf, list(proof.path)
    if not 0 <= index < width:
        raise ProofError("the answer's proof names a place outside its batch")
    while width > 1:
        if index ^ 1 < width:
            if not rest:
                raise ProofError("the answer's proof has too short a path")
            sibling = rest.pop(0)
            node = _hash(_NODE + (sibling + node if index & 1 else node + sibling))
        index, width = index // 2, (width + 1) // 2
    if rest:
        raise ProofError("the answer's proof has too long a path")
    return node
