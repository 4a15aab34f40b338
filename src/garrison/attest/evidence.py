"""What an enclave shows about itself, and what exactly its hardware vouches for.

The hardware signs 64 bytes that the enclave chooses, the *report data*. They bind the enclave's keys, the client's nonce, the
sealed model, its owner and the guard that runs, so that evidence of one service cannot be shown for another, nor old evidence again:

    report_data = SHA-512(label | suite | HPKE key | signing key | epoch and end | nonce | manifest digest | guard digest | owner)

each field with its length in front (RFC 9334 calls the whole evidence; who checks it is the verifier).

Invariant: nothing in `Evidence` counts before `garrison.attest.appraise` has checked it. What lies beside the report data, such as
`capabilities`, is what the host says of itself.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

Technology = Literal["sim", "snp", "tdx", "sgx", "nitro"]
REPORT_DATA_BYTES = 64
NONCE_BYTES = 32
MOST_EPOCH = 2**32 - 1
"""An envelope has four bytes for it."""
_LABEL = b"garrison attestation v1"


class KeySet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The public keys of one epoch of an enclave.

    Attributes:
        suite: name of the HPKE suite, as in `garrison.crypto.hpke`.
        hpke: public key to seal requests to.
        signing: Ed25519 public key that signs the answers, 32 bytes.
        epoch: counts the key sets of one enclave from 1; another epoch, another HPKE key.
        expires: seconds since the epoch, UTC, after which no request may be sealed to it.
    """

    suite: str
    hpke: bytes
    signing: bytes
    epoch: int
    expires: int


class Quote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the hardware (or, for "sim", a program) says over 64 bytes of report data.

    Attributes:
        technology: who signed.
        quote: the signed report, in the technology's own format.
        collateral: certificates and lists that are needed to check it, as far as the enclave has them, by name.
    """

    technology: Technology
    quote: bytes
    collateral: dict[str, bytes] = {}


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a client is given at `/.well-known/garrison/attestation`.

    Attributes:
        nonce: the client's, `NONCE_BYTES` bytes.
        model, version: what the manifest names; they count only through the manifest's digest.
        manifest: the signed manifest as it is, so that the client can read what it trusts; its SHA-256 is in the report data.
        guard: SHA-256 of the chain that runs, in hex.
        owner: fingerprint of the public key under which the enclave found the manifest's signature good: SHA-256 of its PEM form, in
            hex. The host names the keys that an enclave believes, so whose key it was is for the client's policy to judge.
        capabilities: by name, how the enclave is kept apart from its host; said by the host, vouched for by nobody.
    """

    quote: Quote
    keys: KeySet
    nonce: bytes
    model: str
    version: int
    manifest: bytes
    guard: str
    owner: str
    capabilities: dict[str, str] = {}

    @property
    def manifest_sha256(self) -> str:
        return hashlib.sha256(self.manifest).hexdigest()

    def expected_report_data(self) -> bytes:
        return report_data(self.keys, self.nonce, self.manifest_sha256, self.guard, self.owner)


def report_data(keys: KeySet, nonce: bytes, manifest_sha256: str, guard_sha256: str, owner_sha256: str) -> bytes:
    """The 64 bytes that the hardware signs."""
    digest = hashlib.sha512()
    lifetime = f"{keys.epoch}:{keys.expires}".encode()
    fields = (
        keys.suite.encode(),
        keys.hpke,
        keys.signing,
        lifetime,
        nonce,
        manifest_sha256.encode(),
        guard_sha256.encode(),
        owner_sha256.encode(),
    )
    for field in (_LABEL, *fields):
        digest.update(len(field).to_bytes(8, "big") + field)
    return digest.digest()
