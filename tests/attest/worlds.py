"""A PKI for each technology, made by the tests: positive paths, and a place to turn one bit at a time."""

from __future__ import annotations

import datetime as dt
from typing import Any, Protocol

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from garrison.attest.appraise import appraise
from garrison.attest.evidence import Evidence, KeySet, Quote, Technology, report_data
from garrison.attest.policy import Policy
from garrison.attest.report import Report
from garrison.crypto.canonical import canonical_json, sha256_hex

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
DAY = 86_400
NONCE = bytes(range(32))
GUARD = sha256_hex(b"guard")
OWNER = sha256_hex(b"owner")
MANIFEST = canonical_json({"name": "digits", "version": 3, "format": "garrison-bundle/1"})
KEYS = KeySet(suite="test", hpke=b"h" * 32, signing=b"s" * 32, epoch=1, expires=int(NOW.timestamp()) + 3600)
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class World(Protocol):
    """A maker of quotes, and the policy that accepts them."""

    technology: Technology

    def quote(self, data: bytes, **changes: Any) -> Quote: ...

    def policy(self, **changes: Any) -> Policy: ...


def make_evidence(
    world: World, *, bound: dict[str, Any] | None = None, quote: dict[str, Any] | None = None, **shown: Any
) -> Evidence:
    """Evidence whose quote is over `bound` (default: what is right), while `shown` is what the fields say."""
    right: dict[str, Any] = {"keys": KEYS, "nonce": NONCE, "manifest": MANIFEST, "guard": GUARD, "owner": OWNER}
    over = right | (bound or {})
    data = report_data(over["keys"], over["nonce"], sha256_hex(over["manifest"]), over["guard"], over["owner"])
    fields = right | {"model": "digits", "version": 3, "quote": world.quote(data, **(quote or {}))} | shown
    return Evidence(**fields)


def judge(evidence: Evidence, policy: Policy, *, nonce: bytes = NONCE, now: float | None = None) -> Report:
    return appraise(evidence, policy, nonce, NOW.timestamp() if now is None else now)


def failed(report: Report) -> list[str]:
    """Names of the failed steps; a report that has none and yet does not pass is an error of the test's own."""
    assert report.passed != bool(report.failures)
    return [step.name for step in report.failures]


def change(value: msgspec.Struct, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


class Authority:
    """A key and its certificate.

    Args:
        name: common name.
        issuer: who signs; None for a root.
        key: any; for RSA, signatures are PSS with SHA-384, as AMD's.
        ca: how many authorities may stand below; None for a leaf.
        days: before and after NOW.
        extensions: further ones, by object identifier, as raw DER.
    """

    def __init__(
        self,
        name: str,
        issuer: Authority | None,
        key: PrivateKey,
        *,
        ca: int | None = None,
        days: tuple[int, int] = (30, 30),
        extensions: dict[str, bytes] | None = None,
        digest: hashes.HashAlgorithm | None = None,
        usage: bool = True,
    ) -> None:
        self.key = key
        signer = issuer or self
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(signer.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(days=days[0]))
            .not_valid_after(NOW + dt.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=ca is not None, path_length=ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if usage:
            builder = builder.add_extension(_usage(authority=ca is not None), critical=True)
        for oid, der in (extensions or {}).items():
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), der)
            builder = builder.add_extension(extension, critical=False)
        rsa_padding = (
            padding.PSS(padding.MGF1(hashes.SHA384()), 48) if isinstance(signer.key, rsa.RSAPrivateKey) else None
        )
        chosen = digest or hashes.SHA384()
        self.certificate = builder.sign(signer.key, chosen, rsa_padding=rsa_padding)  # type: ignore[arg-type]

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def fingerprint(self) -> str:
        return sha256_hex(self.der)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
