"""Chains of X.509 certificates, checked at an injected time, up to a root that is pinned by the SHA-256 of its DER form.

Checked: every signature, issuer and subject, the time of validity, and that only authorities sign certificates. NOT checked: name
constraints and policies, which no vendor of trusted hardware uses; revocation, but where `check_revocations` is given a list.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import warnings
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

CERTIFICATE_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises over a certificate that somebody broke; they have no base of their own."""


class ChainError(Exception):
    """A certificate or a chain does not hold; never leaves this room."""


def read_certificate(data: bytes) -> x509.Certificate:
    """A certificate in PEM or DER form.

    Raises:
        ChainError: it is none.
    """
    try:
        with warnings.catch_warnings():
            # AMD gives its VCEK certificates the serial number 0, which RFC 5280 forbids.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            if data.lstrip().startswith(b"-----BEGIN"):
                return x509.load_pem_x509_certificate(data)
            return x509.load_der_x509_certificate(data)
    except CERTIFICATE_ERRORS as error:
        raise ChainError(f"no certificate that can be read ({error})") from error


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER form, in lower-case hex."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def check_chain(chain: Sequence[x509.Certificate], roots: Sequence[str], now: float) -> None:
    """Check a chain, leaf first and root last.

    Args:
        chain: at least a leaf and a root.
        roots: fingerprints of the roots that are trusted.
        now: seconds since the epoch, UTC.

    Raises:
        ChainError: says what does not hold.
    """
    if len(chain) < 2:
        raise ChainError("the chain has no issuer")
    if fingerprint(chain[-1]) not in roots:
        raise ChainError(f"the root {fingerprint(chain[-1])} is not trusted")
    for certificate in chain:
        _check_time(certificate, now)
    for depth, (issued, issuer) in enumerate(zip(chain, [*chain[1:], chain[-1]], strict=True)):
        if issuer is not issued:
            _check_authority(issuer, depth)
        try:
            issued.verify_directly_issued_by(issuer)
        except CERTIFICATE_ERRORS as error:
            raise ChainError(f"{_name(issued)} is not signed by {_name(issuer)}") from error


def check_revocations(data: bytes, issuer: x509.Certificate, issued: Sequence[x509.Certificate], now: float) -> None:
    """Check that an issuer's certificate revocation list (PEM or DER) is its own, is valid now, and names none of the certificates.

    Raises:
        ChainError: says what does not hold.
    """
    try:
        pem = data.lstrip().startswith(b"-----BEGIN")
        revoked = x509.load_pem_x509_crl(data) if pem else x509.load_der_x509_crl(data)
        key = issuer.public_key()
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            raise ChainError("the revocation list is not by a key that is known here")
        if revoked.issuer != issuer.subject or not revoked.is_signature_valid(key):
            raise ChainError(f"the revocation list is not by {_name(issuer)}")
        begin, end = revoked.last_update_utc, revoked.next_update_utc
        found = [c for c in issued if revoked.get_revoked_certificate_by_serial_number(c.serial_number)]
    except CERTIFICATE_ERRORS as error:
        raise ChainError("the revocation list cannot be read") from error
    if end is None or not begin <= dt.datetime.fromtimestamp(now, dt.UTC) <= end:
        raise ChainError(f"the revocation list is valid from {begin} to {end}")
    if found:
        raise ChainError(f"{_name(found[0])} has been revoked")


def check_p384(certificate: x509.Certificate, signature: tuple[int, int], message: bytes) -> None:
    """Check an ECDSA signature (r, s) with SHA-384 under the certificate's key.

    Raises:
        ChainError: the key is not on P-384, or the signature does not hold.
    """
    try:
        key = certificate.public_key()
    except CERTIFICATE_ERRORS as error:
        raise ChainError("the certificate's key cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ChainError("the certificate's key is not on P-384")
    try:
        key.verify(utils.encode_dss_signature(*signature), message, ec.ECDSA(hashes.SHA384()))
    except CERTIFICATE_ERRORS as error:
        raise ChainError("it does not hold") from error


def _check_time(certificate: x509.Certificate, now: float) -> None:
    when = dt.datetime.fromtimestamp(now, dt.UTC)
    if not certificate.not_valid_before_utc <= when <= certificate.not_valid_after_utc:
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        raise ChainError(f"{_name(certificate)} is valid from {begin} to {end}, and it is {when:%Y-%m-%d %H:%M:%S}")


def _check_authority(issuer: x509.Certificate, depth: int) -> None:
    """`depth`: how many authorities stand below this one."""
    try:
        basic = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except CERTIFICATE_ERRORS as error:
        raise ChainError(f"{_name(issuer)} does not say that it is an authority") from error
    if not basic.ca or not usage.key_cert_sign:
        raise ChainError(f"{_name(issuer)} is no authority")
    if basic.path_length is not None and depth > basic.path_length:
        raise ChainError(f"{_name(issuer)} may have only {basic.path_length} authorities below it")


def _name(certificate: x509.Certificate) -> str:
    try:
        return certificate.subject.rfc4514_string() or "a certificate without a name"
    except CERTIFICATE_ERRORS:
        return "a certificate whose name cannot be read"
