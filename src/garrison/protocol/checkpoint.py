"""The enclave's statement about a ledger: so many records, with this hash at the end.

The server writes the ledger, and could write another; it cannot sign one. What is signed begins with a label of its own, so that a checkpoint can never be taken
for the signature of an answer (`garrison.protocol.statement`), nor the other way round.

What a checkpoint does *not* say: that the records are true or complete. The enclave sees hashes. It does say from where on this enclave has seen the ledger grow (`since`): what
stands before that, it found there.
"""

from __future__ import annotations

import hashlib

import msgspec

from garrison.crypto.canonical import canonical_json
from garrison.crypto.signing import verify_ed25519

_LABEL = b"garrison ledger checkpoint v2\0"
HEAD_BYTES = 32
BODY_BYTES = 32
LEDGER_BYTES = 16


class Tally(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of sealed requests since the tally before: counts to which noise was added inside (see `garrison.enclave.witness`).

    Attributes:
        since: seconds since the epoch, UTC.
        requests: how many there were; exact, the host knows it anyway.
        counts: by true code, requests; "ok, replaced" are those with a row whose answer a defense changed. May be off by a few, and below 0.
    """

    since: int
    requests: int
    counts: dict[str, int]


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place in a ledger: the number of an entry, and the chain's hash there, in hex."""

    at: int
    head: str


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the enclave says.

    Attributes:
        ledger: which one, 16 bytes in hex.
        at: sequence number of the last entry that is covered.
        head: the chain's hash there, in hex.
        time: seconds since the epoch, UTC, by the enclave's clock, which its host sets.
        model, guard: SHA-256 in hex of the manifest and of the chain of defenses that this enclave runs.
        since: number of the entry that this enclave's first checkpoint of this ledger covered: it has seen the ledger grow from there to `at`, line after line.
        before: what it signed before this; None for its first.
        sealed: what became of sealed requests, where there is enough to tell.
    """

    ledger: str
    at: int
    head: str
    time: int
    model: str
    guard: str
    since: int
    before: Place | None = None
    sealed: Tally | None = None

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return _LABEL + canonical_json(self)


class SignedCheckpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A checkpoint, the public key under which it is signed (32 bytes), and the signature."""

    checkpoint: Checkpoint
    key: bytes
    signature: bytes

    def verify(self) -> None:
        """Check the signature. Whose key it is, is not checked here.

        Raises:
            ProofError: it does not hold.
        """
        verify_ed25519(self.key, self.signature, self.checkpoint.signed_bytes())


def next_head(head: bytes, body: bytes) -> bytes:
    """The chain's hash after a line: from the hash before it, and the SHA-256 of its body."""
    return hashlib.sha256(head + body).digest()


def follows(start: bytes, bodies: bytes, through: bytes, head: bytes) -> bool:
    """Whether a chain goes on from one hash to another, and passes a third on its way.

    Args:
        start: hash of some line.
        bodies: SHA-256 of the bodies of the lines after it, one after the other.
        through: the hash that must be passed; may be `start` or `head`.
        head: the hash after all of them.
    """
    if len(bodies) % BODY_BYTES:
        return False
    passed = start == through
    for at in range(0, len(bodies), BODY_BYTES):
        start = next_head(start, bodies[at : at + BODY_BYTES])
        passed = passed or start == through
    return passed and start == head
