"""Looks at a bundle without trusting it, for people who ask what it claims to be. Nothing here may be computed with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from garrison.bundle.folder import Folder
from garrison.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, Manifest, parse_manifest
from garrison.bundle.signature import parse_signature
from garrison.bundle.strict_json import refuse_ambiguous
from garrison.crypto.canonical import sha256_hex
from garrison.errors import ManifestError
from garrison.limits import DEFAULT_LIMITS, Limits


@dataclass(frozen=True, slots=True)
class UnverifiedBundle:
    """What a bundle says of itself.

    Attributes:
        manifest: as it lies there.
        manifest_sha256: digest of it, in hex.
        claimed_signer: fingerprint of the key that the signature names; anybody can write any fingerprint there.
    """

    manifest: Manifest
    manifest_sha256: str
    claimed_signer: str


def read_unverified(path: Path, limits: Limits = DEFAULT_LIMITS) -> UnverifiedBundle:
    """Read manifest and signature, and check nothing but their form.

    Raises:
        MissingFileError, UnexpectedFileError: no bundle's folder.
        ManifestError, FormatVersionError, SignatureFormatError: not of the form of a bundle.
    """
    with Folder(path) as folder:
        signature = folder.read(SIGNATURE_FILE, limits.manifest_bytes)
        data = folder.read(MANIFEST_FILE, limits.manifest_bytes)
    if len(data) > limits.manifest_bytes:
        raise ManifestError(f"longer than {limits.manifest_bytes} bytes", file=MANIFEST_FILE)
    try:
        refuse_ambiguous(data)
    except ValueError as error:
        raise ManifestError(f"not a valid manifest: {error}", file=MANIFEST_FILE) from error
    return UnverifiedBundle(parse_manifest(data), sha256_hex(data), parse_signature(signature).signer)
