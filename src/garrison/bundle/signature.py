"""The signature of a bundle: OpenSSF model signing (predicate v1.0), key mode, as the `model_signing` tool reads and writes it.

    model.sig            sigstore bundle v0.3, JSON: which key, and a DSSE envelope
      envelope           the payload's bytes (base64) and one ECDSA P-256 signature over their pre-authentication encoding
        payload          in-toto Statement v1: one subject, and the SHA-256 of every file of the folder

Reading side only; `garrison.sealing.sign` writes it. Stricter than the tool: an unknown field, a second signature, base64
that is not in its one canonical form, or a file list out of order is an error, so that no byte of the file can change
unnoticed. Transparency-log entries and certificates (the format's other modes) are not supported.

    signed = parse_signature(data)                # nothing in it is trusted yet
    statement = open_statement(signed, owner)     # only now
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

import msgspec

from garrison.bundle.manifest import SIGNATURE_FILE
from garrison.bundle.strict_json import decode_strict
from garrison.crypto.owner import OwnerPublicKey
from garrison.errors import SignatureFormatError, SignatureInvalidError

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
SHA256_HEX_LENGTH = 64


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class KeyHint(_Strict, frozen=True):
    """SHA-256 of the public key's PEM form, in hex. Says which key to try; proves nothing."""

    hint: str


class VerificationMaterial(_Strict, frozen=True, rename="camel"):
    public_key: KeyHint
    tlog_entries: list[msgspec.Raw]


class EnvelopeSignature(_Strict, frozen=True):
    sig: str
    keyid: str


class Envelope(_Strict, frozen=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: list[EnvelopeSignature]


class SigstoreBundle(_Strict, frozen=True, rename="camel"):
    media_type: str
    verification_material: VerificationMaterial
    dsse_envelope: Envelope


class Digest(_Strict, frozen=True):
    sha256: str


class Subject(_Strict, frozen=True):
    name: str
    digest: Digest


class Resource(_Strict, frozen=True):
    name: str
    digest: str
    algorithm: str


class Serialization(_Strict, frozen=True):
    """How the tool walked the folder. Our reader refuses links and unsigned files whatever stands here."""

    method: str
    hash_type: str
    allow_symlinks: bool
    ignore_paths: list[str] = []


class Predicate(_Strict, frozen=True):
    resources: list[Resource]
    serialization: Serialization


class Statement(_Strict, frozen=True, rename={"type_": "_type", "predicate_type": "predicateType"}):
    type_: str
    subject: list[Subject]
    predicate_type: str
    predicate: Predicate


@dataclass(frozen=True, slots=True)
class UnverifiedSignature:
    """A signature file that reads well, and about which nothing is known yet.

    Attributes:
        signer: fingerprint of the key that it claims.
        payload: the statement's bytes. Not to be parsed before the signature holds.
        signature: ECDSA signature, DER.
    """

    signer: str
    payload: bytes
    signature: bytes


def pre_authentication_encoding(payload: bytes) -> bytes:
    """What is signed: DSSE's encoding of payload type and payload (DSSE v1.0.0, section "Signature Definition")."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def root_digest(digests: list[str]) -> str:
    """The subject's digest: SHA-256 over the raw SHA-256 digests of all files, in order, in hex."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()


def parse_signature(data: bytes) -> UnverifiedSignature:
    """Read a signature file.

    Raises:
        SignatureFormatError: not the format described in the module's docstring.
    """
    try:
        found = decode_strict(data, SigstoreBundle)
    except ValueError as error:
        raise _format_error(str(error)) from error
    envelope = found.dsse_envelope
    _expect("mediaType", MEDIA_TYPE, found.media_type)
    _expect("payloadType", PAYLOAD_TYPE, envelope.payload_type)
    _expect("the number of signatures", 1, len(envelope.signatures))
    _expect("the number of tlogEntries", 0, len(found.verification_material.tlog_entries))
    _expect("keyid", "", envelope.signatures[0].keyid)
    return UnverifiedSignature(
        signer=_hex_digest("the key's hint", found.verification_material.public_key.hint),
        payload=_canonical_base64("payload", envelope.payload),
        signature=_canonical_base64("sig", envelope.signatures[0].sig),
    )


def open_statement(signed: UnverifiedSignature, key: OwnerPublicKey) -> dict[str, str]:
    """Check the signature, and only then read what was signed.

    Returns:
        SHA-256 in hex of each signed file, by path relative to the folder.

    Raises:
        SignatureInvalidError: the signature does not hold under the key.
        SignatureFormatError: it holds, and what was signed is no statement of this format.
    """
    if not key.verify(signed.signature, pre_authentication_encoding(signed.payload)):
        raise SignatureInvalidError(
            f"the signature does not hold under the key {key.fingerprint}: the file was changed after signing",
            file=SIGNATURE_FILE,
        )
    return _parse_statement(signed.payload)


def _parse_statement(payload: bytes) -> dict[str, str]:
    try:
        found = decode_strict(payload, Statement)
    except ValueError as error:
        raise _format_error(f"the signed statement: {error}") from error
    resources, how = found.predicate.resources, found.predicate.serialization
    _expect("_type", STATEMENT_TYPE, found.type_)
    _expect("predicateType", PREDICATE_TYPE, found.predicate_type)
    _expect("the number of subjects", 1, len(found.subject))
    _expect("serialization.method", "files", how.method)
    _expect("serialization.hash_type", "sha256", how.hash_type)
    for resource in resources:
        _expect(f"the algorithm of {resource.name!r}", "sha256", resource.algorithm)
        _hex_digest(f"the digest of {resource.name!r}", resource.digest)
    names = [resource.name for resource in resources]
    _expect("the list of files: sorted, each once", sorted(set(names), key=_path_order), names)
    root = root_digest([resource.digest for resource in resources])
    _expect("the subject's digest", root, found.subject[0].digest.sha256)
    return {resource.name: resource.digest for resource in resources}


def _path_order(name: str) -> list[str]:
    return name.split("/")


def _hex_digest(what: str, text: str) -> str:
    if len(text) != SHA256_HEX_LENGTH or not set(text) <= set("0123456789abcdef"):
        raise _format_error(f"{what}: expected {SHA256_HEX_LENGTH} lower-case hex digits")
    return text


def _canonical_base64(what: str, text: str) -> bytes:
    """Standard base64 has several spellings of the same bytes; only the one that encoding gives is taken."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _format_error(f"{what}: not base64") from error
    if base64.b64encode(data).decode() != text:
        raise _format_error(f"{what}: not in canonical base64")
    return data


def _expect(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise _format_error(f"{what}: expected {_short(expected)}, found {_short(found)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _format_error(message: str) -> SignatureFormatError:
    return SignatureFormatError(f"not an OpenSSF model signature in key mode: {message}", file=SIGNATURE_FILE)
