"""A changed, missing, swapped, truncated or added byte anywhere, an unknown key, another version: each its own error."""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.bundle.conftest import Sealed, make_draft, resign

from garrison.bundle.folder import Folder
from garrison.bundle.reader import VerifiedBundle, entries_of, verify
from garrison.bundle.signature import SigstoreBundle
from garrison.crypto.canonical import sha256_hex
from garrison.crypto.owner import OwnerKey
from garrison.errors import (
    BundleError,
    ChangedFileError,
    ExtendedFileError,
    MissingFileError,
    NoTrustedKeyError,
    SignatureFormatError,
    SignatureInvalidError,
    SwappedFileError,
    TruncatedFileError,
    UnexpectedFileError,
    UntrustedKeyError,
)
from garrison.runtime.runner import Runner

CHUNK = "parameters/0001.bin"


def check(sealed: Sealed) -> VerifiedBundle:
    return verify(sealed.path, [sealed.owner.public])


def flip(file: Path, offset: int, bit: int) -> None:
    with file.open("r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ (1 << bit)]))


def same_size_chunks(sealed: Sealed) -> tuple[str, str]:
    chunks = sealed.manifest.graph.chunks
    first, second = next((a, b) for a in chunks for b in chunks if a.file < b.file and a.size == b.size)
    return first.file, second.file


# The untouched bundle: the control arm of every test below


def test_the_untouched_bundle_verifies_and_runs(sealed: Sealed) -> None:
    bundle = check(sealed)
    assert bundle.manifest == sealed.manifest
    assert bundle.signer == sealed.owner.public.fingerprint
    assert bundle.manifest_sha256 == sha256_hex((sealed.path / "manifest.json").read_bytes())
    assert set(bundle.files) == {e.file for e in entries_of(bundle.manifest)}
    assert all(bundle.files[e.file] == (sealed.path / e.file).read_bytes() for e in entries_of(bundle.manifest))
    answers = Runner(bundle).run(make_draft().rows).values
    assert np.allclose(answers.sum(axis=1), 1, atol=1e-5)


def test_one_of_several_trusted_keys_suffices(sealed: Sealed) -> None:
    trusted = [OwnerKey.generate().public, sealed.owner.public, OwnerKey.generate().public]
    assert verify(sealed.path, trusted).signer == sealed.owner.public.fingerprint


def test_a_bundle_reached_through_a_link_verifies(sealed: Sealed, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(sealed.path)
    assert verify(tmp_path / "current", [sealed.owner.public]).manifest == sealed.manifest


def test_nobody_else_makes_a_verified_bundle(sealed: Sealed) -> None:
    bundle = check(sealed)
    with pytest.raises(TypeError, match="verify alone"):
        VerifiedBundle(
            bundle.manifest, bundle.manifest_json, bundle.manifest_sha256, bundle.signer, bundle.files, object()
        )
    with pytest.raises((TypeError, ValueError)):
        replace(bundle, signer="another")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        bundle.files["graph.onnx"] = b""  # type: ignore[index]


# Steps 1 to 4: the signature


def test_without_a_trusted_key_nothing_verifies(sealed: Sealed) -> None:
    with pytest.raises(NoTrustedKeyError, match="--trust"):
        verify(sealed.path, [])


def test_an_unknown_key_is_named(sealed: Sealed) -> None:
    with pytest.raises(UntrustedKeyError, match=sealed.owner.public.fingerprint):
        verify(sealed.path, [OwnerKey.generate().public])


def test_a_signature_by_another_key_under_a_trusted_name_does_not_hold(sealed: Sealed) -> None:
    resign(sealed.path, OwnerKey.generate())
    file = sealed.path / "model.sig"
    text = file.read_text()
    file.write_text(re.sub(r'"hint":"\w+"', f'"hint":"{sealed.owner.public.fingerprint}"', text))
    with pytest.raises(SignatureInvalidError) as caught:
        check(sealed)
    assert caught.value.file == "model.sig"


def test_a_key_inside_the_bundle_proves_nothing(sealed: Sealed) -> None:
    attacker = OwnerKey.generate()
    (sealed.path / "owner.pub").write_bytes(attacker.public.pem)
    resign(sealed.path, attacker)
    with pytest.raises(UntrustedKeyError):
        check(sealed)


# Single bits


@pytest.mark.parametrize("name", ["model.sig", "manifest.json", "graph.onnx"])
def test_a_flipped_bit_at_every_offset_is_found(sealed: Sealed, name: str) -> None:
    file = sealed.path / name
    rng = np.random.default_rng(len(name))
    expected: tuple[type[BundleError], ...] = (ChangedFileError,)
    if name == "model.sig":
        expected = (SignatureFormatError, SignatureInvalidError, UntrustedKeyError)
    missed, named = [], set()
    for offset in range(file.stat().st_size):
        bit = int(rng.integers(8))
        flip(file, offset, bit)
        try:
            check(sealed)
            missed.append((offset, bit))
        except expected as error:
            named.add(error.file)
        flip(file, offset, bit)
    assert missed == []
    assert named == {name}
    assert check(sealed).manifest == sealed.manifest


def test_flipped_bits_in_every_chunk_are_found(sealed: Sealed) -> None:
    rng = np.random.default_rng(3)
    for chunk in sealed.manifest.graph.chunks:
        for offset in {0, chunk.size - 1, *(int(o) for o in rng.integers(chunk.size, size=20))}:
            flip(sealed.path / chunk.file, offset, 3)
            with pytest.raises(ChangedFileError) as caught:
                check(sealed)
            assert caught.value.file == chunk.file
            flip(sealed.path / chunk.file, offset, 3)
    check(sealed)


@pytest.mark.slow
def test_of_ten_thousand_random_flips_none_is_missed(sealed: Sealed) -> None:
    rng = np.random.default_rng(11)
    files = sorted(f for f in sealed.path.rglob("*") if f.is_file())
    sizes = np.array([f.stat().st_size for f in files])
    wrong = []
    for _ in range(10_000):
        file = files[int(rng.choice(len(files), p=sizes / sizes.sum()))]
        offset, bit = int(rng.integers(file.stat().st_size)), int(rng.integers(8))
        flip(file, offset, bit)
        try:
            check(sealed)
            wrong.append((file, offset, bit))
        except BundleError as error:
            if error.file != file.relative_to(sealed.path).as_posix():
                wrong.append((file, offset, bit))
        flip(file, offset, bit)
    assert wrong == []
    check(sealed)


# Whole files


def cut(path: Path, by: int = 1) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def change(path: Path) -> None:
    flip(path, 0, 0)


@pytest.mark.parametrize(
    ("name", "damage", "error"),
    [
        ("graph.onnx", cut, TruncatedFileError),
        (CHUNK, cut, TruncatedFileError),
        (CHUNK, lambda p: p.write_bytes(b""), TruncatedFileError),
        ("manifest.json", cut, ChangedFileError),
        ("model.sig", cut, SignatureFormatError),
        ("model.sig", lambda p: p.write_bytes(b""), SignatureFormatError),
        ("graph.onnx", extend, ExtendedFileError),
        (CHUNK, extend, ExtendedFileError),
        ("manifest.json", extend, ChangedFileError),
        ("model.sig", extend, SignatureFormatError),
        ("graph.onnx", change, ChangedFileError),
        (CHUNK, change, ChangedFileError),
        ("graph.onnx", Path.unlink, MissingFileError),
        (CHUNK, Path.unlink, MissingFileError),
        ("manifest.json", Path.unlink, MissingFileError),
        ("model.sig", Path.unlink, MissingFileError),
    ],
)
def test_a_damaged_file_is_named(
    sealed: Sealed, name: str, damage: Callable[[Path], object], error: type[BundleError]
) -> None:
    check(sealed)
    damage(sealed.path / name)
    with pytest.raises(error) as caught:
        check(sealed)
    assert caught.value.file == name
    assert name in str(caught.value)


def test_swapped_chunks_are_told_from_changed_ones(sealed: Sealed) -> None:
    first, second = (sealed.path / name for name in same_size_chunks(sealed))
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(SwappedFileError, match=same_size_chunks(sealed)[1]) as caught:
        check(sealed)
    assert caught.value.file == same_size_chunks(sealed)[0]
    first.write_bytes(a)
    second.write_bytes(b)
    check(sealed)


def test_a_chunk_that_stands_in_for_another_is_told(sealed: Sealed) -> None:
    first, second = same_size_chunks(sealed)
    (sealed.path / first).write_bytes((sealed.path / second).read_bytes())
    with pytest.raises(SwappedFileError):
        check(sealed)


@pytest.mark.parametrize(
    "name", ["extra.bin", "parameters/9999.bin", ".hidden", "parameters/sub/0000.bin", "\udcff\x1b"]
)
def test_an_added_file_is_named(sealed: Sealed, name: str) -> None:
    (sealed.path / name).parent.mkdir(exist_ok=True)
    (sealed.path / name).write_bytes(b"")
    with pytest.raises(UnexpectedFileError) as caught:
        check(sealed)
    assert caught.value.file is not None
    assert str(caught.value).isprintable()
    (sealed.path / name).unlink()


def test_an_added_empty_folder_is_named(sealed: Sealed) -> None:
    (sealed.path / "empty").mkdir()
    with pytest.raises(UnexpectedFileError) as caught:
        check(sealed)
    assert caught.value.file == "empty"


@pytest.mark.parametrize("name", ["graph.onnx", CHUNK, "manifest.json", "model.sig"])
def test_a_link_is_refused_even_to_the_right_bytes(sealed: Sealed, tmp_path: Path, name: str) -> None:
    (sealed.path / name).rename(tmp_path / "elsewhere")
    (sealed.path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnexpectedFileError, match="link") as caught:
        check(sealed)
    assert caught.value.file == name


def test_a_linked_folder_is_refused(sealed: Sealed, tmp_path: Path) -> None:
    (sealed.path / "parameters").rename(tmp_path / "elsewhere")
    (sealed.path / "parameters").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnexpectedFileError, match="link") as caught:
        check(sealed)
    assert caught.value.file == "parameters"


@pytest.mark.parametrize("name", ["graph.onnx", "model.sig"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_a_special_file_is_refused_and_does_not_hang(
    sealed: Sealed, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = sealed.path / name
    file.unlink()
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case _:
            monkeypatch.chdir(sealed.path)  # a socket's path must be short
            with socket.socket(socket.AF_UNIX) as s:
                s.bind(name)
    with pytest.raises(BundleError) as caught:
        check(sealed)
    assert caught.value.file == name


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    owner = OwnerKey.generate()
    with pytest.raises(MissingFileError, match="nowhere"):
        verify(tmp_path / "nowhere", [owner.public])
    (tmp_path / "file").write_text("x")
    with pytest.raises(MissingFileError):
        verify(tmp_path / "file", [owner.public])
    with pytest.raises(MissingFileError) as caught:
        verify(tmp_path, [owner.public])
    assert caught.value.file == "model.sig"


# Somebody who changes files while they are read


def test_what_was_checked_is_what_is_handed_on(sealed: Sealed) -> None:
    bundle = check(sealed)
    for file in bundle.files:
        (sealed.path / file).write_bytes(b"changed after verification")
    assert all(sha256_hex(bundle.files[e.file]) == e.sha256 for e in entries_of(bundle.manifest))
    Runner(bundle).run(make_draft().rows)


def test_each_file_is_read_once(sealed: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Counter[str] = Counter()
    real = Folder.read

    def counted(self: Folder, name: str, most: int) -> bytes:
        reads[name] += 1
        return real(self, name, most)

    monkeypatch.setattr(Folder, "read", counted)
    bundle = check(sealed)
    assert reads == Counter({*bundle.files, "manifest.json", "model.sig"})


def test_the_signature_file_has_the_documented_form(sealed: Sealed) -> None:
    msgspec.json.decode((sealed.path / "model.sig").read_bytes(), type=SigstoreBundle)
