"""A made-up Intel: root, processor, quoting enclave, signed TCB information and certificate lists; SGX v3 and TDX v4 quotes."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import struct
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.attest.worlds import NOW, OWNER, Authority

from garrison.attest.evidence import Quote, Technology
from garrison.attest.policy import Policy

SGX = "1.2.840.113741.1.13.1"
FMSPC, PCEID = bytes.fromhex("00a067110000"), bytes(2)
SVN, PCESVN = 5, 13
MRENCLAVE, MRTD, RTMR = bytes(range(32)), bytes(range(48)), bytes(range(48, 96))
QE_MRSIGNER = bytes(range(200, 232))
QE_SVN = 8
VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")


def tlv(tag: int, value: bytes) -> bytes:
    length = bytes([len(value)]) if len(value) < 128 else b"\x82" + len(value).to_bytes(2, "big")
    return bytes([tag]) + length + value


def oid(text: str) -> bytes:
    first, second, *rest = map(int, text.split("."))
    out = bytes([40 * first + second])
    for number in rest:
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(number & 0x7F | 0x80)
        out += bytes(reversed(digits))
    return tlv(6, out)


def pair(name: str, value: bytes) -> bytes:
    return tlv(0x30, oid(f"{SGX}.{name}") + value)


def small(number: int) -> bytes:
    return tlv(2, bytes([number]))


def sgx_extension() -> bytes:
    levels = b"".join(pair(f"2.{n}", small(SVN)) for n in range(1, 17))
    levels += pair("2.17", small(PCESVN)) + pair("2.18", tlv(4, bytes([SVN] * 16)))
    parts = pair("1", tlv(4, bytes(16))) + pair("2", tlv(0x30, levels))
    parts += pair("3", tlv(4, PCEID)) + pair("4", tlv(4, FMSPC)) + pair("5", tlv(0x0A, b"\0"))
    return tlv(0x30, parts)


def raw_signature(key: Any, message: bytes) -> bytes:
    r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def when(days: int) -> str:
    return (NOW + dt.timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


class DcapWorld:
    def __init__(self, technology: Literal["sgx", "tdx"], *, days: tuple[int, int] = (30, 30)) -> None:
        self.technology: Technology = technology
        plain = {"digest": hashes.SHA256()}
        self.root = Authority("root", None, p256(), ca=1, **plain)  # type: ignore[arg-type]
        self.ca = Authority("platform", self.root, p256(), ca=0, **plain)  # type: ignore[arg-type]
        self.signer = Authority("tcb", self.root, p256(), **plain)  # type: ignore[arg-type]
        self.pck = Authority(
            "pck", self.ca, p256(), days=days, extensions={SGX: sgx_extension()}, digest=hashes.SHA256()
        )
        self.attestation_key = p256()

    def quote(self, data: bytes, *, debug: bool = False, status: str = "UpToDate", **_: Any) -> Quote:
        body = self.header() + (self.td_report(data, debug=debug) if self.tdx else enclave_report(data, debug=debug))
        lists = json.dumps(self.collateral(status)).encode()
        return Quote(
            technology=self.technology, quote=self.sign(body), collateral={"dcap": lists, "root": self.root.der}
        )

    @property
    def tdx(self) -> bool:
        return self.technology == "tdx"

    def header(self) -> bytes:
        version, tee = (4, 0x81) if self.tdx else (3, 0)
        return struct.pack("<HHIHH16s20s", version, 2, tee, 0, 0, VENDOR, bytes(20))

    def td_report(self, data: bytes, *, debug: bool) -> bytes:
        attributes = bytes([int(debug), 0, 0, 0x10, 0, 0, 0, 0])
        head = bytes([SVN] * 16) + bytes(48) + bytes(48) + bytes(8) + attributes + bytes.fromhex("e702060000000000")
        return head + MRTD + bytes(3 * 48) + RTMR + bytes(3 * 48) + data

    def sign(self, body: bytes) -> bytes:
        public = raw_public(self.attestation_key)
        qe_data = bytes(range(32))
        bound = hashlib.sha256(public + qe_data).digest() + bytes(32)
        qe = enclave_report(bound, signer=QE_MRSIGNER, svn=QE_SVN, product=2 if self.tdx else 1)
        chain = self.pck.pem + self.ca.pem + self.root.pem
        inner = qe + raw_signature(self.pck.key, qe) + struct.pack("<H", len(qe_data)) + qe_data
        inner += struct.pack("<HI", 5, len(chain)) + chain
        outer = struct.pack("<HI", 6, len(inner)) + inner if self.tdx else inner
        auth = raw_signature(self.attestation_key, body) + public + outer
        return body + struct.pack("<I", len(auth)) + auth

    def collateral(self, status: str) -> dict[str, str]:
        tcb, qe = json.dumps(self.tcb_info(status)), json.dumps(self.qe_identity())
        chain = (self.signer.pem + self.root.pem).decode()
        return {
            "pck_crl_issuer_chain": (self.ca.pem + self.root.pem).decode(),
            "root_ca_crl": revocations(self.root).hex(),
            "pck_crl": revocations(self.ca).hex(),
            "tcb_info_issuer_chain": chain,
            "tcb_info": tcb,
            "tcb_info_signature": raw_signature(self.signer.key, tcb.encode()).hex(),
            "qe_identity_issuer_chain": chain,
            "qe_identity": qe,
            "qe_identity_signature": raw_signature(self.signer.key, qe.encode()).hex(),
        }

    def tcb_info(self, status: str) -> dict[str, Any]:
        levels: dict[str, Any] = {"sgxtcbcomponents": [{"svn": SVN}] * 16, "pcesvn": PCESVN}
        info: dict[str, Any] = {"id": "TDX" if self.tdx else "SGX", "version": 3}
        if self.tdx:
            levels["tdxtcbcomponents"] = [{"svn": SVN}] * 16
            module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "ff" * 8}
            level = {"tcb": {"isvsvn": SVN}, "tcbDate": when(-60), "tcbStatus": "UpToDate"}
            info |= {
                "tdxModule": module,
                "tdxModuleIdentities": [{"id": f"TDX_0{SVN}", **module, "tcbLevels": [level]}],
            }
        return info | {
            "issueDate": when(-10),
            "nextUpdate": when(20),
            "fmspc": FMSPC.hex().upper(),
            "pceId": PCEID.hex(),
            "tcbType": 0,
            "tcbEvaluationDataNumber": 17,
            "tcbLevels": [{"tcb": levels, "tcbDate": when(-60), "tcbStatus": status}],
        }

    def qe_identity(self) -> dict[str, Any]:
        return {
            "id": "TD_QE" if self.tdx else "QE",
            "version": 2,
            "issueDate": when(-10),
            "nextUpdate": when(20),
            "tcbEvaluationDataNumber": 17,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "05" + "00" * 15,
            "attributesMask": "FB" + "FF" * 7 + "00" * 8,
            "mrsigner": QE_MRSIGNER.hex().upper(),
            "isvprodid": 2 if self.tdx else 1,
            "tcbLevels": [{"tcb": {"isvsvn": QE_SVN}, "tcbDate": when(-60), "tcbStatus": "UpToDate"}],
        }

    def policy(self, **changes: Any) -> Policy:
        registers = ":".join([MRTD.hex(), RTMR.hex(), *["00" * 48] * 3])
        fields: dict[str, Any] = {
            "owners": (OWNER,),
            "measurements": {self.technology: (registers if self.tdx else MRENCLAVE.hex(),)},
            "roots": {self.technology: (self.root.fingerprint,)},
        }
        return Policy(**(fields | changes))


def enclave_report(
    data: bytes, *, debug: bool = False, signer: bytes = bytes(32), svn: int = 0, product: int = 0
) -> bytes:
    attributes = bytes([5 | (2 if debug else 0)]) + bytes(7) + bytes.fromhex("e700000000000000")
    head = bytes([SVN] * 16) + bytes(4) + bytes(28) + attributes + MRENCLAVE + bytes(32) + signer + bytes(96)
    return head + struct.pack("<HH", product, svn) + bytes(60) + data


def revocations(authority: Authority, *serials: int) -> bytes:
    """A revocation list, valid from 10 days before NOW to 20 after."""
    key = authority.key
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.name)
        .last_update(NOW - dt.timedelta(days=10))
        .next_update(NOW + dt.timedelta(days=20))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - dt.timedelta(days=11))
        builder = builder.add_revoked_certificate(revoked.build())
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
        return builder.sign(key, hashes.SHA384(), rsa_padding=pss).public_bytes(Encoding.DER)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
