"""Whose signatures on a ledger count: a strict value, without which none does."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from garrison.attest.appraise import appraise
from garrison.attest.policy import Policy
from garrison.errors import GarrisonError
from garrison.server.ledger.records import Enclave, evidence_nonce


@dataclass(frozen=True, slots=True)
class KeyTrust:
    """Who vouches for the keys that sign checkpoints.

    Attributes:
        policy: evidence in the ledger counts where it passes this policy at the time that its line names; None for no evidence at all.
        keys: public keys, in hex, that the caller knows from elsewhere, such as from what `garrison serve` shows.
        unsafe_any_key: let every key count. The ledger then shows that it holds together, and not whose it is.
    """

    policy: Policy | None = None
    keys: frozenset[str] = frozenset()
    unsafe_any_key: bool = False

    def known(self, key: str) -> str:
        """Why a key counts without evidence; "" where it does not."""
        if key in self.keys:
            return "named by the caller"
        return "nobody: any key was allowed" if self.unsafe_any_key else ""

    def vouch(self, enclave: Enclave, ledger: str) -> tuple[bool, str]:
        """Whether the evidence of a line vouches for its key; who does, or why not."""
        evidence = enclave.evidence
        if evidence is None:
            return (
                False,
                f"its enclave gives no evidence (isolation {enclave.isolation}); name it with --key where you know it",
            )
        if self.policy is None:
            return False, "no policy says what evidence is good enough (--trust, --policy)"
        named = (evidence.keys.signing.hex(), evidence.manifest_sha256, evidence.guard)
        if named != (enclave.key, enclave.manifest, enclave.guard):
            return False, "its evidence is of another key, model or guard"
        try:
            report = appraise(evidence, self.policy, evidence_nonce(ledger, enclave.key), enclave.time)
        except GarrisonError as error:
            return False, str(error)
        if not report.passed:
            failed = next((step for step in report.steps if step.status == "failed"), None)
            why = (
                "not every step passed"
                if failed is None
                else f"{failed.name}: expected {failed.expected}, found {failed.found}"
            )
            return False, f"its evidence is not good enough: {why}"
        return True, f"evidence of {report.technology}, measurement {report.measurement or 'unknown'}"


def policy_of(policy: Policy | None, owners: tuple[str, ...], *, allow_simulated: bool = False) -> Policy | None:
    """A policy that also lists these owners (fingerprints); None where nothing is said at all."""
    if policy is None and not owners and not allow_simulated:
        return None
    base = policy or Policy()
    return msgspec.structs.replace(
        base, owners=(*base.owners, *owners), allow_simulated=base.allow_simulated or allow_simulated
    )
