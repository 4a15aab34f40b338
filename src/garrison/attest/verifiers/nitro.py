"""AWS Nitro attestation documents ("Verifying the root of trust", AWS Nitro Enclaves user guide; COSE_Sign1, RFC 9052).

A document is CBOR, signed with ECDSA P-384 by a key whose certificate lives about three hours; it brings the chain up to the root.
The 64 bytes of report data stand in `user_data`; the client's nonce is bound through them, so the document's own `nonce`
field is not used. The measurement is PCR0, over the whole enclave image. In debug mode all PCRs are zero.

Collateral: none. NOT checked: the other PCRs, which PCR0 covers or which say who started the enclave; `public_key`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from cryptography import x509

from garrison.attest.certificates import ChainError, check_chain, check_p384, read_certificate
from garrison.attest.claims import Claims
from garrison.attest.evidence import Quote
from garrison.attest.policy import Policy
from garrison.attest.steps import Checks
from garrison.errors import MissingExtraError

AWS_ROOTS = ("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b",)
"""aws.nitro-enclaves."""

MOST_BYTES = 32_768
_MOST_DEPTH = 8
_ES384_HEADER = {1: -35}
_SIGNATURE_BYTES = 96
_COSE_PARTS = 4
_Certificate = Annotated[bytes, msgspec.Meta(min_length=1, max_length=1024)]


class NitroDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The payload, with the bounds of the user guide; `timestamp` in milliseconds since the epoch."""

    module_id: Annotated[str, msgspec.Meta(min_length=1)]
    timestamp: Annotated[int, msgspec.Meta(gt=0)]
    digest: str
    pcrs: Annotated[dict[int, bytes], msgspec.Meta(min_length=1, max_length=32)]
    certificate: _Certificate
    cabundle: Annotated[list[_Certificate], msgspec.Meta(min_length=1)]
    public_key: Annotated[bytes, msgspec.Meta(max_length=1024)] | None = None
    user_data: Annotated[bytes, msgspec.Meta(max_length=512)] | None = None
    nonce: Annotated[bytes, msgspec.Meta(max_length=512)] | None = None


class NitroVerifier:
    """Checks a document, its chain and its mode."""

    required: ClassVar[frozenset[str]] = frozenset({"certificates", "debug", "measurement", "age"})

    def verify(
        self,
        quote: Quote,
        policy: Policy,
        now: float,
        collateral: Mapping[str, bytes],  # noqa: ARG002  the signature of all verifiers
        checks: Checks,
    ) -> Claims:
        try:
            protected, payload, signature = _open(quote.quote)
            document = _document(payload)
        except ValueError as error:
            checks.stop("format", "a Nitro attestation document", str(error))
        checks.note("format", ok=True, expected="a Nitro attestation document", found=f"from {document.module_id}")
        leaf = _check_certificates(document, policy, now, checks)
        _check_signature(protected, payload, signature, leaf, checks)
        checks.skip("platform", "nothing in a document names the host's processor")
        checks.skip("tcb", "a document has no firmware level; the vendor keeps it current")
        image = document.pcrs[0]
        debug = not any(image)
        said = "PCR0 is all zero: debug" if debug else "PCR0 is set"
        checks.note("debug", policy.allow_debug or not debug, "PCR0 not all zero", said)
        time = document.timestamp / 1000
        return Claims(report_data=document.user_data or b"", measurement=image.hex(), time=time)


def _open(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Protected header, payload and signature of a COSE_Sign1 message."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data)} bytes, more than {MOST_BYTES}")
    message = _decode(data)
    if not isinstance(message, list) or len(message) != _COSE_PARTS:
        raise ValueError("no COSE_Sign1 message")
    protected, unprotected, payload, signature = message
    if not all(isinstance(part, bytes) for part in (protected, payload, signature)) or unprotected != {}:
        raise ValueError("no COSE_Sign1 message")
    if _decode(protected) != _ES384_HEADER:
        raise ValueError("signed with another algorithm than ES384")
    if len(signature) != _SIGNATURE_BYTES:
        raise ValueError(f"a signature of {len(signature)} bytes")
    return protected, payload, signature


def _document(payload: bytes) -> NitroDocument:
    try:
        document = msgspec.convert(_decode(payload), NitroDocument)
    except (msgspec.ValidationError, TypeError) as error:
        raise ValueError(str(error)) from error
    if document.digest != "SHA384" or any(len(value) not in (32, 48, 64) for value in document.pcrs.values()):
        raise ValueError("PCRs of another kind than SHA384")
    if 0 not in document.pcrs:
        raise ValueError("no PCR0")
    return document


def _decode(data: bytes) -> Any:
    try:
        import cbor2
    except ImportError as error:
        raise MissingExtraError("cbor2", "attest") from error
    stream = io.BytesIO(data)
    try:
        found = cbor2.CBORDecoder(stream, max_depth=_MOST_DEPTH, allow_duplicate_keys=False, read_size=1).decode()
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"no CBOR ({error})") from error
    if stream.tell() != len(data):
        raise ValueError("bytes behind the end")
    return found


def _check_certificates(document: NitroDocument, policy: Policy, now: float, checks: Checks) -> x509.Certificate:
    expected = "a chain, valid, up to a trusted root"
    try:
        chain = [read_certificate(data) for data in (document.certificate, *reversed(document.cabundle))]
        check_chain(chain, policy.roots.get("nitro", AWS_ROOTS), now)
    except ChainError as error:
        checks.stop("certificates", expected, str(error))
    checks.note("certificates", ok=True, expected=expected, found="it holds")
    return chain[0]


def _check_signature(
    protected: bytes, payload: bytes, signature: bytes, leaf: x509.Certificate, checks: Checks
) -> None:
    import cbor2

    expected = "ECDSA P-384 with SHA-384 by the chain's end"
    half = len(signature) // 2
    r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    try:
        check_p384(leaf, (r, s), signed)
    except ChainError as error:
        checks.stop("signature", expected, str(error))
    checks.note("signature", ok=True, expected=expected, found="it holds")
