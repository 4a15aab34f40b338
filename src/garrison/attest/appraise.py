"""Is this evidence good enough? The appraisal of RFC 9334, in steps whose outcome can be read one by one.

    technology      the policy accepts who signed
    format          the quote can be read, and is of that technology
    certificates    a chain of valid certificates leads to a root that the policy trusts
    signature       the quote is signed by the chain's end
    platform        the certificate belongs to this processor, and the report was asked for from the right level
    tcb             the firmware is new enough
    debug           the host cannot look in
    measurement     the program is one of those that the policy lists
    report-data     the quote was made over exactly these keys, this nonce, this manifest, its owner and this guard
    nonce           the nonce is the one just sent
    age             the document's own time, where it has one
    keys            the key set is whole, has not expired, and does not last for too long
    manifest        the manifest names the model that the evidence names, and is one that the policy allows
    owner           the manifest was signed by somebody whom the policy lists, or is itself listed
    version         the model is no older than the policy allows
    guard           the chain of defenses is one that the policy allows

Invariant: whatever the evidence holds, the outcome is a report; only a step that *passed* counts.

NOT checked: whether the host speaks the truth in `capabilities`; what a measurement stands for (the policy's author has to know);
side channels; whether a processor's key has leaked since its last certificate list.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from garrison.attest.claims import Claims
from garrison.attest.evidence import MOST_EPOCH, NONCE_BYTES, Evidence
from garrison.attest.policy import Policy
from garrison.attest.report import Report
from garrison.attest.steps import COMMON, Checks, Stop
from garrison.attest.verifiers import find_verifier
from garrison.crypto.signing import PUBLIC_KEY_BYTES

_CLOCK_SKEW_SECONDS = 60.0


class _Named(msgspec.Struct, frozen=True):
    """What an appraisal reads of a manifest; the rest is the business of `garrison.bundle`."""

    name: str
    version: int


def appraise(
    evidence: Evidence,
    policy: Policy,
    nonce: bytes,
    now: float,
    collateral: Mapping[str, bytes] | None = None,
) -> Report:
    """Check evidence against a policy.

    Args:
        evidence: as it came.
        policy: what is demanded.
        nonce: the bytes that this client has just sent, `NONCE_BYTES` of them, never used before.
        now: seconds since the epoch, UTC.
        collateral: certificates and lists that the verifier has fetched itself; they replace those that came with the evidence.

    Returns:
        a report; call `require()` before anything of the evidence is used.

    Raises:
        MissingExtraError: the technology needs a package that is not installed.
    """
    quote, checks = evidence.quote, Checks()
    measurement, required = "", COMMON
    try:
        wanted = [*policy.technologies, *(["sim"] if policy.allow_simulated else [])]
        checks.demand("technology", policy.accepts(quote.technology), " or ".join(wanted) or "none", quote.technology)
        checks.note("technology", ok=True, expected=" or ".join(wanted), found=quote.technology)
        verifier = find_verifier(quote.technology)
        required = COMMON | verifier.required
        claims = verifier.verify(quote, policy, now, {**quote.collateral, **(collateral or {})}, checks)
        measurement = claims.measurement
        _check_claims(evidence, claims, policy, nonce, now, checks)
        _check_service(evidence, policy, now, checks)
    except Stop:
        pass
    return Report(
        technology=quote.technology,
        measurement=measurement,
        steps=checks.steps(),
        required=tuple(sorted(required)),
    )


def _check_claims(evidence: Evidence, claims: Claims, policy: Policy, nonce: bytes, now: float, checks: Checks) -> None:
    listed = policy.measurements.get(evidence.quote.technology, ())
    if listed or evidence.quote.technology != "sim":
        expected = f"one of {', '.join(listed)}" if listed else "one that the policy lists (it lists none)"
        checks.note("measurement", claims.measurement in listed, expected, claims.measurement)
    else:
        checks.skip("measurement", f"the policy lists none: {claims.measurement}")
    bound = evidence.expected_report_data()
    checks.note("report-data", claims.report_data == bound, bound.hex(), claims.report_data.hex())
    fresh = len(nonce) == NONCE_BYTES and evidence.nonce == nonce
    checks.note("nonce", fresh, f"{nonce.hex()} ({NONCE_BYTES} bytes)", evidence.nonce.hex())
    if claims.time is None:
        checks.skip("age", "the document bears no time")
    else:
        age = now - claims.time
        good = -_CLOCK_SKEW_SECONDS <= age <= policy.max_age
        checks.note("age", good, f"at most {policy.max_age} s, by this clock", f"{age:.0f} s")


def _check_service(evidence: Evidence, policy: Policy, now: float, checks: Checks) -> None:
    keys = evidence.keys
    whole = len(keys.signing) == PUBLIC_KEY_BYTES and bool(keys.hpke) and 0 < keys.epoch <= MOST_EPOCH
    checks.note("keys", whole, "an HPKE key and an Ed25519 key", f"{len(keys.hpke)} and {len(keys.signing)} bytes")
    last = now + policy.most_key_seconds
    checks.note("keys", now < keys.expires <= last, f"an end after {now:.0f}, and by {last:.0f}", f"{keys.expires}")
    try:
        manifest = msgspec.json.decode(evidence.manifest, type=_Named)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        checks.stop("manifest", "a manifest that names the model", str(error))
    named, said = f"{manifest.name} {manifest.version}", f"{evidence.model} {evidence.version}"
    checks.note("manifest", named == said, f"the model that the evidence names, {said}", named)
    checks.note("manifest", policy.model in ("", manifest.name), f"the model {policy.model}", manifest.name)
    if policy.manifests:
        digest = evidence.manifest_sha256
        checks.note("manifest", digest in policy.manifests, f"one of {', '.join(policy.manifests)}", digest)
    _check_owner(evidence, policy, checks)
    found = manifest.version
    checks.note("version", found >= policy.least_version, f"at least {policy.least_version}", str(found))
    if policy.guards:
        listed = f"one of {', '.join(policy.guards)}"
        checks.note("guard", evidence.guard in policy.guards, listed, evidence.guard)
    else:
        checks.skip("guard", f"the policy lists none: {evidence.guard}")


def _check_owner(evidence: Evidence, policy: Policy, checks: Checks) -> None:
    """The enclave believes the keys that its host named. It vouches for which of them it was; whether that is good is decided here."""
    if policy.owners:
        checks.note("owner", evidence.owner in policy.owners, f"one of {', '.join(policy.owners)}", evidence.owner)
    elif policy.manifests:
        checks.skip("owner", f"the policy lists the models themselves: {evidence.owner}")
    elif evidence.quote.technology == "sim":
        checks.skip("owner", f"the policy lists none: {evidence.owner}")
    else:
        checks.note("owner", ok=False, expected="one that the policy lists (it lists none)", found=evidence.owner)
