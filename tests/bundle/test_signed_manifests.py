"""What an owner might sign by mistake, or by malice: each its own error."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from tests.bundle.conftest import Sealed, resign

from garrison.bundle.manifest import Manifest
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.errors import (
    FormatVersionError,
    ManifestError,
    MissingFileError,
    SignatureFormatError,
    TruncatedFileError,
)
from garrison.limits import Limits


def check(sealed: Sealed) -> VerifiedBundle:
    return verify(sealed.path, [sealed.owner.public])


def rewrite(sealed: Sealed, change: Callable[[bytes], bytes]) -> None:
    file = sealed.path / "manifest.json"
    file.write_bytes(change(file.read_bytes()))
    resign(sealed.path, sealed.owner)


def edit(sealed: Sealed, **changes: object) -> None:
    def change(data: bytes) -> bytes:
        manifest = msgspec.json.decode(data, type=Manifest)
        return msgspec.structs.replace(manifest, **changes).encode()

    rewrite(sealed, change)


def test_a_rewritten_manifest_that_stays_right_verifies(sealed: Sealed) -> None:
    edit(sealed, version=2)
    assert check(sealed).manifest.version == 2


@pytest.mark.parametrize("found", ["garrison-bundle/2", "garrison-bundle/0", "another", ""])
def test_another_format_version_is_told(sealed: Sealed, found: str) -> None:
    edit(sealed, format=found)
    with pytest.raises(FormatVersionError, match="garrison-bundle/1") as caught:
        check(sealed)
    assert caught.value.file == "manifest.json"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.replace(b'"version": 1', b'"version": 1, "version": 2'),
        lambda d: d.replace(b'"version": 1', b'"version": 1, "unknown": 2'),
        lambda d: d.replace(b'"version": 1', b'"version": 0'),
        lambda d: d.replace(b'"version": 1', b'"version": NaN'),
        lambda d: d.replace(b'"version": 1', b'"version": ' + b"1" * 5000),
        lambda d: d.replace(b'"labels"', b'"lables"'),
        lambda d: d + b"{}",
        lambda d: b"\xef\xbb\xbf" + d,
        lambda d: d.decode().encode("utf-16"),
        lambda _: b"",
        lambda _: b"[]",
        lambda _: b"[" * 100_000,
        lambda _: b'{"format":' * 100_000,
        lambda _: b'{"format": "garrison-bundle/1", "name": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_a_signed_manifest_that_does_not_read_is_refused(sealed: Sealed, change: Callable[[bytes], bytes]) -> None:
    rewrite(sealed, change)
    with pytest.raises(ManifestError) as caught:
        check(sealed)
    assert caught.value.file == "manifest.json"


def test_a_huge_manifest_is_not_read(sealed: Sealed) -> None:
    limits = Limits(manifest_bytes=200_000)
    verify(sealed.path, [sealed.owner.public], limits)
    rewrite(sealed, lambda d: d + b" " * 200_000)
    check(sealed)
    with pytest.raises(ManifestError, match="longer"):
        verify(sealed.path, [sealed.owner.public], limits)


def test_a_huge_signature_is_not_read(sealed: Sealed) -> None:
    (sealed.path / "model.sig").write_bytes(b" " * 300_000)
    with pytest.raises(SignatureFormatError, match="longer"):
        verify(sealed.path, [sealed.owner.public], Limits(manifest_bytes=200_000))


def test_a_manifest_that_names_other_files_than_the_signature_is_refused(sealed: Sealed) -> None:
    (sealed.path / "notes.txt").write_text("signed, but the manifest does not know it")
    resign(sealed.path, sealed.owner)
    with pytest.raises(ManifestError, match=r"notes\.txt"):
        check(sealed)


def test_a_manifest_that_contradicts_the_signature_is_refused(sealed: Sealed) -> None:
    graph = sealed.manifest.graph
    first, second = graph.chunks[0], graph.chunks[1]
    for wrong, why in [
        ((msgspec.structs.replace(first, sha256=second.sha256), *graph.chunks[1:]), "another digest"),
        ((*graph.chunks, first), "another file must stand"),
        ((*graph.chunks, msgspec.structs.replace(first, file="manifest.json")), "another file must stand"),
        (graph.chunks[1:], "not in the manifest"),
        ((*graph.chunks, msgspec.structs.replace(first, file="parameters/none.bin")), "not in the signature"),
        ((*graph.chunks, msgspec.structs.replace(first, file="../outside")), "plain path"),
        ((*graph.chunks, msgspec.structs.replace(first, file="/etc/passwd")), "plain path"),
    ]:
        edit(sealed, victim=msgspec.structs.replace(graph, chunks=wrong))
        with pytest.raises(ManifestError, match=why):
            check(sealed)


def test_a_signed_wrong_size_is_told_without_taking_memory(sealed: Sealed) -> None:
    graph = sealed.manifest.graph
    large = msgspec.structs.replace(graph.chunks[0], size=1 << 60)
    edit(sealed, victim=msgspec.structs.replace(graph, chunks=(large, *graph.chunks[1:])))
    with pytest.raises(TruncatedFileError):
        check(sealed)


def test_a_signature_without_a_manifest_is_no_bundle(sealed: Sealed) -> None:
    (sealed.path / "manifest.json").unlink()
    resign(sealed.path, sealed.owner)
    with pytest.raises(MissingFileError) as caught:
        check(sealed)
    assert caught.value.file == "manifest.json"
