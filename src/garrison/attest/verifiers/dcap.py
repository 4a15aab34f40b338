"""Intel TDX and SGX quotes (DCAP; quote formats 3, 4 and 5), through the package `dcap-qvl`.

The package checks, at the injected time: the processor's certificate chain and the certificate lists, the quoting enclave and its
identity, the signature over the quote, the TCB level against Intel's signed TCB information. Here: which TCB status is good
enough, debug, the measurement, what the quote was made over.

Collateral: `dcap`, the JSON object of Intel's provisioning service that dcap-qvl reads; `root`, a root certificate, only where the
policy names roots for the technology.

Measurement: for SGX MRENCLAVE; for TDX MRTD and RTMR0 to RTMR3, joined by ":", because MRTD alone covers no more than the
firmware. NOT checked: MRSIGNER, product id and version, MRCONFIGID, MROWNER, the advisories by name. A quote's bytes are never an
identity: many bits of its envelope may be changed without effect. The package itself refuses debug, so `allow_debug` changes nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cryptography.hazmat.primitives.serialization import Encoding

from garrison.attest.certificates import ChainError, fingerprint, read_certificate
from garrison.attest.claims import Claims
from garrison.attest.evidence import Quote
from garrison.attest.policy import Policy
from garrison.attest.steps import Checks
from garrison.errors import MissingExtraError

MOST_BYTES = 65_536
_SGX_DEBUG = 0x02
_REASONS = (
    ("Expired", "certificates"),
    ("certificate", "certificates"),
    ("CRL", "certificates"),
    ("issuer", "certificates"),
    ("UnknownIssuer", "certificates"),
    ("NotValidYet", "certificates"),
    ("TCB", "tcb"),
    ("ebug", "debug"),
    ("decode", "format"),
)
"""Words in the package's messages and the step that they belong to; what is not found here is called "signature"."""


class DcapVerifier:
    """Checks TDX and SGX quotes."""

    required: ClassVar[frozenset[str]] = frozenset({"certificates", "tcb", "debug", "measurement"})

    def verify(
        self, quote: Quote, policy: Policy, now: float, collateral: Mapping[str, bytes], checks: Checks
    ) -> Claims:
        dcap = _package()
        expected = f"a quote of the kind {quote.technology}"
        checks.demand("format", len(quote.quote) <= MOST_BYTES, expected, f"{len(quote.quote)} bytes")
        try:
            parsed = dcap.Quote.parse(quote.quote)
        except ValueError as error:
            checks.stop("format", expected, _first_line(error))
        found = f"{parsed.quote_type().lower()}, format {parsed.header.version}"
        checks.demand("format", parsed.quote_type().lower() == quote.technology, expected, found)
        checks.note("format", ok=True, expected=expected, found=found)
        # Read before anything is checked, and only to refuse: a debug quote gets its own name instead of the package's error.
        debug = _is_debug(parsed.report, quote.technology)
        checks.demand("debug", policy.allow_debug or not debug, "no debug (attributes)", "debug")
        verified = _verify(dcap, quote, policy, now, collateral, checks)
        said = "debug" if debug else "no debug"
        checks.note("debug", policy.allow_debug or not debug, "no debug (attributes)", said)
        accepted = policy.dcap.statuses
        status = f"{verified.status} {', '.join(verified.advisory_ids)}".strip()
        checks.note("tcb", verified.status in accepted, " or ".join(accepted), status)
        checks.skip("platform", "part of the certificates")
        return Claims(report_data=parsed.report.report_data, measurement=_measurement(parsed.report, quote.technology))


def _package() -> Any:
    try:
        import dcap_qvl
    except ImportError as error:
        raise MissingExtraError("dcap-qvl", "attest") from error
    return dcap_qvl


def _verify(
    dcap: Any,
    quote: Quote,
    policy: Policy,
    now: float,
    collateral: Mapping[str, bytes],
    checks: Checks,
) -> Any:
    checks.demand("certificates", "dcap" in collateral, "collateral (dcap)", "none")
    root = _own_root(quote, policy, collateral, checks)
    try:
        lists = dcap.QuoteCollateralV3.from_json(collateral["dcap"].decode())
    except ValueError as error:
        checks.stop("certificates", "collateral that can be read", _first_line(error))
    try:
        if root is None:
            verified = dcap.verify(quote.quote, lists, int(now))
        else:
            verified = dcap.verify_with_root_ca(quote.quote, lists, root, int(now))
    except (ValueError, OverflowError) as error:
        message = " ".join(str(error).split())
        step = next((name for word, name in _REASONS if word in message), "signature")
        checks.stop(step, "a quote that dcap-qvl verifies", message)
    for step in ("certificates", "signature"):
        checks.note(step, ok=True, expected="a quote that dcap-qvl verifies", found="it holds")
    return verified


def _own_root(quote: Quote, policy: Policy, collateral: Mapping[str, bytes], checks: Checks) -> bytes | None:
    """The root that takes the place of Intel's, in DER form, where the policy names one."""
    pinned = policy.roots.get(quote.technology)
    if pinned is None:
        return None
    checks.demand("certificates", "root" in collateral, "a root certificate (root)", "none")
    try:
        root = read_certificate(collateral["root"])
    except ChainError as error:
        checks.stop("certificates", "a root certificate (root)", str(error))
    checks.demand("certificates", fingerprint(root) in pinned, f"one of {', '.join(pinned)}", fingerprint(root))
    return root.public_bytes(Encoding.DER)


def _is_debug(report: Any, technology: str) -> bool:
    """For TDX: any bit of the group "TD under debug", the lowest byte of the attributes."""
    if technology == "tdx":
        return bool(report.td_attributes[0])
    return bool(report.attributes[0] & _SGX_DEBUG)


def _measurement(report: Any, technology: str) -> str:
    if technology == "sgx":
        return str(report.mr_enclave.hex())
    registers = (report.mr_td, report.rt_mr0, report.rt_mr1, report.rt_mr2, report.rt_mr3)
    return ":".join(register.hex() for register in registers)


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0]
