"""The enclave's statement about a ledger: so many records, with this hash at the end.

The server writes the ledger, and could write another; it cannot sign one. What is signed begins with a label of its own, so that a checkpoint can never be taken
for the signature of an answer (`garrison.protocol.statement`), nor the other way round.

What a checkpoint does *not* say: that the records are true or complete. The enclave sees one hash.
"""

from __future__ import annotations

import msgspec

from garrison.crypto.canonical import canonical_json
from garrison.crypto.signing import verify_ed25519

_LABEL = b"garrison ledger checkpoint v1\0"
HEAD_BYTES = 32
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


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the enclave says.

    Attributes:
        ledger: which one, 16 bytes in hex.
        at: sequence number of the last entry that is covered.
        head: the chain's hash there, in hex.
        time: seconds since the epoch, UTC, by the enclave's clock, which its host sets.
        model, guard: SHA-256 in hex of the manifest and of the chain of defenses that this enclave runs.
        sealed: what became of sealed requests, where there is enough to tell.
    """

    ledger: str
    at: int
    head: str
    time: int
    model: str
    guard: str
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
