"""Verifies a sealed bundle. The only maker of `VerifiedBundle`, which is the only thing that the runtime takes.

Invariants: nothing is computed with a byte before it was checked; what was checked is what is handed on, never read again;
a key that lies in the bundle proves nothing, so without a trusted key there is no verified bundle.

    bundle = verify(Path("BUNDLE"), [OwnerPublicKey.from_pem(pem)])
    bundle.manifest.name, bundle.files["graph.onnx"]

Not checked: whether this version is the newest that the owner signed (a client's policy may ask for a least version), and
whether the owner's model is any good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path
from types import MappingProxyType

from garrison.bundle.folder import Folder
from garrison.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, ChunkEntry, GraphEntry, Manifest, parse_manifest
from garrison.bundle.signature import UnverifiedSignature, open_statement, parse_signature
from garrison.bundle.strict_json import refuse_ambiguous
from garrison.crypto.canonical import sha256_hex
from garrison.crypto.owner import OwnerPublicKey
from garrison.errors import (
    ChangedFileError,
    ExtendedFileError,
    ManifestError,
    MissingFileError,
    NoTrustedKeyError,
    SignatureFormatError,
    SwappedFileError,
    TruncatedFileError,
    UntrustedKeyError,
)
from garrison.limits import DEFAULT_LIMITS, Limits

_MADE_BY_VERIFY = object()


@dataclass(frozen=True, slots=True)
class VerifiedBundle:
    """A bundle of which every byte was checked against a trusted key. Made by `verify` alone.

    Attributes:
        manifest: the signed manifest.
        manifest_json: its bytes, as they were signed.
        manifest_sha256: their digest, in hex; names the model in evidence and signed answers.
        signer: fingerprint of the trusted key that signed.
        files: the bytes of each graph and chunk that the manifest names, by path; these were checked.
    """

    manifest: Manifest
    manifest_json: bytes
    manifest_sha256: str
    signer: str
    files: Mapping[str, bytes]
    proof: InitVar[object]

    def __post_init__(self, proof: object) -> None:
        if proof is not _MADE_BY_VERIFY:
            raise TypeError("a VerifiedBundle is made by garrison.bundle.reader.verify alone")


def verify(path: Path, trusted: Sequence[OwnerPublicKey], limits: Limits = DEFAULT_LIMITS) -> VerifiedBundle:
    """Check a bundle from the trusted key to the last byte.

        1  a trusted key is there
        2  the signature file reads
        3  it is made by a trusted key
        4  the signature holds; only now is read what it signs
        5  the folder holds the signed files and nothing else
        6  the manifest is the signed one, reads, and agrees with the signed list
        7  each graph and chunk is read once, has the signed size and the signed digest

    Args:
        path: the bundle's folder.
        trusted: the keys whose signature counts; from the one who asks, never from the bundle.
        limits: `manifest_bytes` bounds signature and manifest.

    Raises:
        NoTrustedKeyError: step 1.
        SignatureFormatError: step 2, or a signed statement of another format in step 4.
        UntrustedKeyError: step 3.
        SignatureInvalidError: step 4.
        MissingFileError, UnexpectedFileError: step 5, and wherever a file has vanished since.
        ChangedFileError, FormatVersionError, ManifestError: step 6.
        TruncatedFileError, ExtendedFileError, SwappedFileError, ChangedFileError: step 7.
    """
    # 1 a trusted key is there
    keys = _by_fingerprint(trusted)
    with Folder(path) as folder:
        # 2 the signature file reads
        signed = parse_signature(_read_signature(folder, limits))
        # 3 it is made by a trusted key
        key = _signing_key(signed, keys)
        # 4 the signature holds; only now is read what it signs
        digests = open_statement(signed, key)
        # 5 the folder holds the signed files and nothing else
        folder.check_exactly({*digests, SIGNATURE_FILE})
        # 6 the manifest is the signed one, reads, and agrees with the signed list
        manifest, manifest_json = _read_manifest(folder, digests, limits)
        # 7 each graph and chunk is read once, has the signed size and the signed digest
        files = {entry.file: _read_entry(folder, entry, digests) for entry in entries_of(manifest)}
    digest = digests[MANIFEST_FILE]
    return VerifiedBundle(manifest, manifest_json, digest, key.fingerprint, MappingProxyType(files), _MADE_BY_VERIFY)


def entries_of(manifest: Manifest) -> tuple[GraphEntry | ChunkEntry, ...]:
    """Every file that a manifest names: the graphs, each followed by its chunks."""
    found: list[GraphEntry | ChunkEntry] = []
    for graph in manifest.graphs:
        found += [graph, *graph.chunks]
    return tuple(found)


def _by_fingerprint(trusted: Sequence[OwnerPublicKey]) -> dict[str, OwnerPublicKey]:
    if not trusted:
        raise NoTrustedKeyError(
            "no trusted key was given, and a key that lies in a bundle proves nothing: "
            "name the owner's public key with --trust OWNER.pub, GARRISON_TRUST, or trust in garrison.toml"
        )
    return {key.fingerprint: key for key in trusted}


def _read_signature(folder: Folder, limits: Limits) -> bytes:
    data = folder.read(SIGNATURE_FILE, limits.manifest_bytes)
    if len(data) > limits.manifest_bytes:
        raise SignatureFormatError(f"longer than {limits.manifest_bytes} bytes", file=SIGNATURE_FILE)
    return data


def _signing_key(signed: UnverifiedSignature, keys: Mapping[str, OwnerPublicKey]) -> OwnerPublicKey:
    if signed.signer not in keys:
        raise UntrustedKeyError(
            f"signed by the key {signed.signer}, which is not among the trusted ones ({', '.join(sorted(keys))})",
            file=SIGNATURE_FILE,
        )
    return keys[signed.signer]


def _read_manifest(folder: Folder, digests: Mapping[str, str], limits: Limits) -> tuple[Manifest, bytes]:
    if MANIFEST_FILE not in digests:
        raise MissingFileError("the signature does not cover a manifest, so this is no bundle", file=MANIFEST_FILE)
    data = folder.read(MANIFEST_FILE, limits.manifest_bytes)
    if len(data) > limits.manifest_bytes:
        raise ManifestError(f"longer than {limits.manifest_bytes} bytes", file=MANIFEST_FILE)
    _check_digest(MANIFEST_FILE, data, digests)
    try:
        refuse_ambiguous(data)
    except ValueError as error:
        raise ManifestError(f"not a valid manifest: {error}", file=MANIFEST_FILE) from error
    manifest = parse_manifest(data)
    _check_agreement(manifest, digests)
    return manifest, data


def _check_agreement(manifest: Manifest, digests: Mapping[str, str]) -> None:
    """The manifest and the signature tell the same about the same files."""
    told: dict[str, str] = {}
    for entry in entries_of(manifest):
        if entry.file in told or entry.file in {MANIFEST_FILE, SIGNATURE_FILE}:
            raise ManifestError(f"names {entry.file!r} where another file must stand", file=MANIFEST_FILE)
        told[entry.file] = entry.sha256
    signed = {name: digest for name, digest in digests.items() if name != MANIFEST_FILE}
    for name in sorted(told.keys() ^ signed.keys()):
        where = "the signature, but not in the manifest" if name in signed else "the manifest, but not in the signature"
        raise ManifestError(f"{name!r} stands in {where}", file=MANIFEST_FILE)
    for name, digest in told.items():
        if digest != signed[name]:
            raise ManifestError(f"gives {name!r} another digest than the signature", file=MANIFEST_FILE)


def _read_entry(folder: Folder, entry: GraphEntry | ChunkEntry, digests: Mapping[str, str]) -> bytes:
    _check_size(entry, folder.size(entry.file))  # before memory is taken for what the manifest promises
    data = folder.read(entry.file, entry.size)
    _check_size(entry, len(data))
    _check_digest(entry.file, data, digests)
    return data


def _check_size(entry: GraphEntry | ChunkEntry, size: int) -> None:
    if size < entry.size:
        raise TruncatedFileError(f"expected {entry.size} bytes, found {size}", file=entry.file)
    if size > entry.size:
        raise ExtendedFileError(f"expected {entry.size} bytes, found at least {size}", file=entry.file)


def _check_digest(name: str, data: bytes, digests: Mapping[str, str]) -> None:
    found = sha256_hex(data)
    if found == digests[name]:
        return
    for other, digest in digests.items():
        if digest == found:
            raise SwappedFileError(f"holds the content of {other!r}", file=name)
    raise ChangedFileError(
        f"its bytes are not the signed ones: expected SHA-256 {digests[name]}, found {found}", file=name
    )
