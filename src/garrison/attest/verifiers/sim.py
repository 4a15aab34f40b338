"""Quotes of a simulation (see `garrison.enclave.quotes.sim`). A signature that holds shows that the document is whole, and NOTHING else:
its key stands in the document itself. Only a policy that says `allow_simulated` comes this far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import msgspec

from garrison.attest.claims import Claims
from garrison.attest.evidence import Quote
from garrison.attest.policy import Policy
from garrison.attest.steps import Checks
from garrison.crypto.canonical import canonical_json
from garrison.crypto.signing import verify_ed25519
from garrison.errors import ProofError

_LABEL = b"garrison simulated quote v1\n"


class SimClaims(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is signed.

    Attributes:
        report_data: 64 bytes.
        measurement: SHA-256 of the program's source files as it read them itself, in hex.
        key: the Ed25519 public key that signs, 32 bytes.
    """

    report_data: bytes
    measurement: str
    key: bytes


class _SimQuote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    claims: SimClaims
    signature: bytes


def encode_quote(claims: SimClaims, sign: Callable[[bytes], bytes]) -> bytes:
    """The quote, as canonical JSON."""
    return canonical_json(_SimQuote(claims=claims, signature=sign(_LABEL + canonical_json(claims))))


class SimVerifier:
    """Checks that a simulated quote is whole."""

    required: ClassVar[frozenset[str]] = frozenset()

    def verify(
        self,
        quote: Quote,
        policy: Policy,  # noqa: ARG002  the signature of all verifiers
        now: float,  # noqa: ARG002  the same
        collateral: Mapping[str, bytes],  # noqa: ARG002  the same
        checks: Checks,
    ) -> Claims:
        try:
            found = msgspec.json.decode(quote.quote, type=_SimQuote)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            checks.stop("format", "a simulated quote", str(error))
        checks.note("format", canonical_json(found) == quote.quote, "canonical JSON", f"{len(quote.quote)} bytes")
        checks.skip("certificates", "a simulation has none: nobody vouches for its key")
        try:
            verify_ed25519(found.claims.key, found.signature, _LABEL + canonical_json(found.claims))
        except ProofError as error:
            checks.stop("signature", "an Ed25519 signature under the quote's own key", str(error))
        words = "it holds, under a key that proves nothing"
        checks.note("signature", ok=True, expected="an Ed25519 signature", found=words)
        for name in ("platform", "tcb", "debug"):
            checks.skip(name, "a simulation has none")
        return Claims(report_data=found.claims.report_data, measurement=found.claims.measurement)
