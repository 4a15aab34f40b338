"""Who checks quotes: a new technology is one file here and one line below."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import ClassVar, Protocol

from garrison.attest.claims import Claims
from garrison.attest.evidence import Quote, Technology
from garrison.attest.policy import Policy
from garrison.attest.steps import Checks

VERIFIERS: dict[Technology, str] = {
    "sim": "garrison.attest.verifiers.sim:SimVerifier",
    "snp": "garrison.attest.verifiers.snp:SnpVerifier",
    "tdx": "garrison.attest.verifiers.dcap:DcapVerifier",
    "sgx": "garrison.attest.verifiers.dcap:DcapVerifier",
    "nitro": "garrison.attest.verifiers.nitro:NitroVerifier",
}


class Verifier(Protocol):
    """Checks the quotes of one technology."""

    required: ClassVar[frozenset[str]]
    """Steps that this technology has and that must pass."""

    def verify(
        self, quote: Quote, policy: Policy, now: float, collateral: Mapping[str, bytes], checks: Checks
    ) -> Claims:
        """What the quote says, after it has been shown to hold.

        Args:
            quote: as it came, worth nothing yet.
            policy: what is demanded.
            now: seconds since the epoch, UTC; certificates and lists must be valid then.
            collateral: what came with the quote, overlaid with what the verifier fetched itself. Trusted no further than its
                signatures reach.
            checks: where each step is noted.

        Raises:
            Stop: the quote does not hold; the failed step has been noted.
            MissingExtraError: a package that this technology needs is not installed.
        """
        ...


def find_verifier(technology: Technology) -> Verifier:
    module, _, attribute = VERIFIERS[technology].partition(":")
    kind: type[Verifier] = getattr(importlib.import_module(module), attribute)
    return kind()
