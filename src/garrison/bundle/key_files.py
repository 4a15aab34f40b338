"""An owner's key pair as files: OWNER.key, which seals and stays with its owner, and OWNER.pub, which is given to all who verify."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from garrison.bundle.private import why_not_private
from garrison.crypto.owner import OwnerKey, OwnerPublicKey
from garrison.errors import KeyFileError

MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Where a pair lies; the fingerprint is the SHA-256 of the public key's PEM form, in hex."""

    private: Path
    public: Path
    fingerprint: str


def check_pair_target(out: Path, *, force: bool) -> tuple[Path, Path]:
    """The two files' paths; raises `KeyFileError` where one is there already and may not be replaced."""
    if not out.name or out.name == "..":
        raise KeyFileError(f"{out}: expected the name of a pair, such as owner, found a folder")
    private, public = (out.with_name(out.name + suffix) for suffix in (".key", ".pub"))
    for file in (private, public):
        try:
            there, folder = file.exists(), file.is_dir()
        except OSError as error:
            raise KeyFileError(f"{file}: cannot be written: {error.strerror}") from error
        if folder:
            raise KeyFileError(f"{file} is a folder; give another name")
        if there and not force:
            raise KeyFileError(f"{file} exists already; give another name, or --force to replace it")
    return private, public


def make_pair(out: Path, passphrase: bytes | None = None, *, force: bool = False) -> KeyPair:
    """Make a key pair and write OUT.key (mode 0600) and OUT.pub: both, or none of them.

    Args:
        passphrase: encrypts the private key; None leaves it plain.
        force: replace an older pair.

    Raises:
        KeyFileError: a file is there already, or cannot be written.
    """
    private, public = check_pair_target(out, force=force)
    owner = OwnerKey.generate()
    _write_all([(private, owner.to_pem(passphrase), 0o600), (public, owner.public.pem, 0o644)], force=force)
    return KeyPair(private, public, owner.public.fingerprint)


def read_key_file(file: Path, what: str) -> bytes:
    """A key file's bytes.

    Args:
        what: of what, for the message.

    Raises:
        KeyFileError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return stream.read(MOST_BYTES)
    except OSError as error:
        raise KeyFileError(f"{file}: the {what} cannot be read: {error.strerror}") from error


def read_private_key(file: Path, passphrase: bytes | None) -> OwnerKey:
    """The owner's key.

    Raises:
        KeyFileError: it cannot be read, or others may read it and no passphrase protects it, or the passphrase is missing or wrong.
    """
    why = "" if passphrase is not None else why_not_private(file)
    if why:
        raise KeyFileError(f"the owner's key: {why}")
    try:
        return OwnerKey.from_pem(read_key_file(file, "owner's key"), passphrase)
    except KeyFileError as error:
        raise error if str(error).startswith(str(file)) else KeyFileError(f"{file}: {error}") from error


def read_public_key(file: Path) -> OwnerPublicKey:
    """A public key from its PEM file.

    Raises:
        KeyFileError: it cannot be read or holds no public key.
    """
    pem = read_key_file(file, "trusted key")
    try:
        return OwnerPublicKey.from_pem(pem)
    except KeyFileError as error:
        raise KeyFileError(f"{file}: {error}") from error


def _write_all(files: Sequence[tuple[Path, bytes, int]], *, force: bool) -> None:
    """All of the files appear whole, or none does and what was there is there still.

    Args:
        files: path, content, mode.
        force: take the place of older ones.
    """
    older = []
    with contextlib.ExitStack() as clean, contextlib.ExitStack() as undo:
        staged = [_hidden(file) for file, _, _ in files]
        for new, (file, data, mode) in zip(staged, files, strict=True):
            clean.callback(_remove, new)
            with _explained(file):
                _stage(new, data, mode)
        for new, (file, _, _) in zip(staged, files, strict=True):
            with _explained(file):
                if force and file.exists():
                    older.append(_hidden(file))
                    file.rename(older[-1])
                    undo.callback(older[-1].replace, file)
                os.close(
                    os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                )  # the name is ours now
                undo.callback(_remove, file)
                new.replace(file)
        undo.pop_all()
    for file in older:
        _remove(file)


def _stage(new: Path, data: bytes, mode: int) -> None:
    """Never readable by others on the way."""
    new.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _hidden(file: Path) -> Path:
    return file.with_name(f".{file.name}.{secrets.token_hex(4)}")


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not file.parent.is_dir():
            raise KeyFileError(f"{file}: cannot be written: {file.parent} is no folder") from error
        if isinstance(error, FileExistsError):  # it has come since we looked
            raise KeyFileError(f"{file} exists already; give another name, or --force to replace it") from error
        raise KeyFileError(f"{file}: cannot be written: {error.strerror}") from error
