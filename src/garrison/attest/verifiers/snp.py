"""AMD SEV-SNP attestation reports (AMD 56860, "SEV Secure Nested Paging Firmware ABI Specification", table "ATTESTATION_REPORT").

A report of 1,184 bytes is signed with ECDSA P-384 by a key of this very processor at this very firmware level (VCEK). Its
certificate comes from AMD: VCEK <- ASK <- ARK, with the levels and the processor's id in extensions of the VCEK (AMD 57230).

Collateral, by name: `vcek`, `ask`, `ark`, and AMD's revocation list `crl` where there is one; each in PEM or DER form.

Refused, because nothing here can judge it: a report signed by a cloud's key (VLEK), and one with a masked processor id.
NOT checked: the revocation list, unless it is there or the policy requires it; `host_data`, `family_id`, `image_id`, the id block; what the guest loads after its launch. The
measurement covers the guest's first memory: firmware, and kernel and initial file system where the firmware holds their hashes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import ClassVar

import msgspec
from cryptography import x509

from garrison.attest.certificates import (
    CERTIFICATE_ERRORS,
    ChainError,
    check_chain,
    check_p384,
    check_revocations,
    read_certificate,
)
from garrison.attest.claims import Claims
from garrison.attest.evidence import Quote
from garrison.attest.policy import Policy, SnpTcb
from garrison.attest.steps import Checks

AMD_ROOTS = ("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",)
"""ARK-Milan. The roots of other processor lines are named by the policy: `roots.snp`."""

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0
_VERSIONS = (2, 3, 4, 5)
_FAMILY_SINCE_VERSION = 3
_TURIN_FAMILY = 0x1A
_ECDSA_P384_SHA384 = 1
_COMPONENT_BYTES = 72
_MIGRATION_AGENT_BIT, _DEBUG_BIT = 18, 19
_MASKED_CHIP_BIT = 1
_VCEK = 0
_OID = "1.3.6.1.4.1.3704.1"
_TCB_OIDS = {
    "bootloader": f"{_OID}.3.1",
    "tee": f"{_OID}.3.2",
    "snp": f"{_OID}.3.3",
    "microcode": f"{_OID}.3.8",
    "fmc": f"{_OID}.3.9",
}
_CHIP_OID = f"{_OID}.4"
_DER_INTEGER, _DER_OCTETS = 0x02, 0x04


class SnpReport(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a report that the appraisal looks at; as the processor wrote them, and not yet checked.

    Attributes:
        debug: the host may read the guest's memory.
        migratable: an agent may move the guest, and so its memory, elsewhere.
        vmpl: privilege level from which the report was asked, 0 is the highest.
        signing_key: 0 for the processor's own (VCEK), 1 for the cloud's (VLEK).
        masked: the processor's id has been left out.
        reported: the firmware levels that the signing key stands for.
    """

    version: int
    debug: bool
    migratable: bool
    vmpl: int
    signature_algorithm: int
    signing_key: int
    masked: bool
    report_data: bytes
    measurement: bytes
    reported: SnpTcb
    chip_id: bytes
    turin: bool


def parse_report(data: bytes) -> SnpReport:
    """Read a report.

    Raises:
        ValueError: not a report of a version that is known here.
    """
    if len(data) != REPORT_BYTES:
        raise ValueError(f"{len(data)} bytes")
    (version,) = struct.unpack_from("<I", data, 0)
    if version not in _VERSIONS:
        raise ValueError(f"version {version}")
    (policy,) = struct.unpack_from("<Q", data, 0x08)
    vmpl, algorithm = struct.unpack_from("<II", data, 0x30)
    (flags,) = struct.unpack_from("<I", data, 0x48)
    turin = version >= _FAMILY_SINCE_VERSION and data[0x188] == _TURIN_FAMILY
    return SnpReport(
        version=version,
        debug=bool(policy >> _DEBUG_BIT & 1),
        migratable=bool(policy >> _MIGRATION_AGENT_BIT & 1),
        vmpl=vmpl,
        signature_algorithm=algorithm,
        signing_key=flags >> 2 & 0b111,
        masked=bool(flags >> _MASKED_CHIP_BIT & 1),
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0],
        reported=_tcb(data[0x180:0x188], turin=turin),
        chip_id=data[0x1A0:0x1E0],
        turin=turin,
    )


class SnpVerifier:
    """Checks a report, its chain, and that the two belong together."""

    required: ClassVar[frozenset[str]] = frozenset({"certificates", "platform", "tcb", "debug", "measurement"})

    def verify(
        self, quote: Quote, policy: Policy, now: float, collateral: Mapping[str, bytes], checks: Checks
    ) -> Claims:
        try:
            report = parse_report(quote.quote)
        except ValueError as error:
            checks.stop("format", f"an SNP report of {REPORT_BYTES} bytes, version 2 to 5", str(error))
        checks.note("format", ok=True, expected="an SNP report", found=f"version {report.version}")
        vcek = _check_certificates(collateral, policy, now, checks)
        _check_signature(quote.quote, report, vcek, checks)
        _check_platform(report, vcek, policy, checks)
        least = policy.snp.least_tcb
        enough = least is not None and report.reported.at_least(least)
        checks.note("tcb", enough, str(least or "a least TCB in the policy (snp.least_tcb)"), str(report.reported))
        said = "debug" if report.debug else "no debug"
        checks.note("debug", policy.allow_debug or not report.debug, "no debug (bit 19 of the guest policy)", said)
        return Claims(report_data=report.report_data, measurement=report.measurement.hex())


def _check_certificates(
    collateral: Mapping[str, bytes], policy: Policy, now: float, checks: Checks
) -> x509.Certificate:
    expected = "vcek <- ask <- ark, valid, up to a trusted root"
    missing = [name for name in ("vcek", "ask", "ark") if name not in collateral]
    checks.demand("certificates", not missing, expected, f"no {', '.join(missing)}")
    try:
        chain = [read_certificate(collateral[name]) for name in ("vcek", "ask", "ark")]
        check_chain(chain, policy.roots.get("snp", AMD_ROOTS), now)
        if policy.snp.require_crl or "crl" in collateral:
            check_revocations(collateral.get("crl", b""), chain[2], chain[1:2], now)
    except ChainError as error:
        checks.stop("certificates", expected, str(error))
    checks.note("certificates", ok=True, expected=expected, found="they hold")
    return chain[0]


def _check_signature(data: bytes, report: SnpReport, vcek: x509.Certificate, checks: Checks) -> None:
    expected = "ECDSA P-384 with SHA-384 by the VCEK"
    checks.demand(
        "signature",
        report.signature_algorithm == _ECDSA_P384_SHA384,
        expected,
        f"algorithm {report.signature_algorithm}",
    )
    numbers = data[SIGNED_BYTES : SIGNED_BYTES + 2 * _COMPONENT_BYTES]
    r, s = (int.from_bytes(part, "little") for part in (numbers[:_COMPONENT_BYTES], numbers[_COMPONENT_BYTES:]))
    try:
        check_p384(vcek, (r, s), data[:SIGNED_BYTES])
    except ChainError as error:
        checks.stop("signature", expected, str(error))
    rest = data[SIGNED_BYTES + 2 * _COMPONENT_BYTES :]
    checks.demand("signature", not any(rest), "zeros behind the signature", "other bytes")
    checks.note("signature", ok=True, expected=expected, found="it holds")


def _check_platform(report: SnpReport, vcek: x509.Certificate, policy: Policy, checks: Checks) -> None:
    """A processor with older firmware has another VCEK: its certificate's levels must be the report's."""
    own = report.signing_key == _VCEK and not report.masked
    found = f"signing key {report.signing_key}{', id masked' if report.masked else ''}"
    checks.demand("platform", own, "a report signed by the processor's own key (VCEK), with its id", found)
    try:
        chip, levels = _chip_id(vcek), _certified_tcb(vcek, turin=report.turin)
    except ValueError as error:
        checks.stop("platform", "a VCEK that names processor and levels", str(error))
    same = chip == report.chip_id[: len(chip)] and not any(report.chip_id[len(chip) :])
    checks.note("platform", same, f"processor {report.chip_id.hex()}", chip.hex())
    checks.note("platform", levels == report.reported, f"a VCEK for {report.reported}", str(levels))
    most = policy.snp.most_vmpl
    checks.note("platform", report.vmpl <= most, f"privilege level (VMPL) at most {most}", str(report.vmpl))
    checks.note("platform", not report.migratable, "no migration agent (bit 18 of the guest policy)", "one is allowed")


def _tcb(data: bytes, *, turin: bool) -> SnpTcb:
    if turin:
        return SnpTcb(fmc=data[0], bootloader=data[1], tee=data[2], snp=data[3], microcode=data[7])
    return SnpTcb(bootloader=data[0], tee=data[1], snp=data[6], microcode=data[7])


def _certified_tcb(vcek: x509.Certificate, *, turin: bool) -> SnpTcb:
    names = [name for name in _TCB_OIDS if turin or name != "fmc"]
    return SnpTcb(**{name: _small_integer(_extension(vcek, _TCB_OIDS[name])) for name in names})


def _chip_id(vcek: x509.Certificate) -> bytes:
    """64 bytes, or 8 from Turin on, where the report fills up with zeros; as they are, or as a DER octet string."""
    value = _extension(vcek, _CHIP_OID)
    if len(value) in (66, 10) and value[0] == _DER_OCTETS and value[1] == len(value) - 2:
        value = value[2:]
    if len(value) not in (64, 8):
        raise ValueError(f"a processor id of {len(value)} bytes")
    return value


def _extension(certificate: x509.Certificate, oid: str) -> bytes:
    try:
        found = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid)).value
    except CERTIFICATE_ERRORS as error:
        raise ValueError(f"the VCEK lacks the extension {oid}") from error
    return found.public_bytes()


def _small_integer(der: bytes) -> int:
    """A DER integer from 0 to 255."""
    if len(der) not in (3, 4) or der[0] != _DER_INTEGER or der[1] != len(der) - 2:
        raise ValueError(f"no small integer: {der.hex()}")
    return int.from_bytes(der[2:], "big", signed=True)
