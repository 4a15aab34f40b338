"""The secret file beside a bundle: one model's misinformation key, for the server.

    BUNDLE/                  may be shown to anybody
    BUNDLE.secret            belongs on the server, outside the bundle; who has it can tell wrong answers from right ones
    OWNER.key                stays where models are sealed; the secret is derived from it and signs nothing

A text file of comment lines (beginning with "#") and one line of base64. Written with mode 0600. Not checked when it is read: who
else may read it, because container platforms mount secrets with modes of their own.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from garrison.bundle.manifest import Manifest
from garrison.bundle.private import why_not_private
from garrison.crypto.owner import MISINFORMATION_KEY_BYTES, key_commitment
from garrison.errors import KeyFileError

SUFFIX = ".secret"
MOST_BYTES = 4096


def secret_path(bundle: Path) -> Path:
    """Where the secret of a bundle lies unless something else is said: beside it."""
    resolved = bundle.absolute()
    return resolved.with_name(resolved.name + SUFFIX)


def write_secret(path: Path, key: bytes, model: str) -> None:
    """Write the file with mode 0600; it appears whole or not at all.

    Args:
        path: where; an older file is replaced.
        key: 32 bytes.
        model: the model's name, for the comment.

    Raises:
        KeyFileError: it cannot be written.
    """
    with staged_secret(path, key, model) as put_in_place:
        put_in_place()


@contextmanager
def staged_secret(path: Path, key: bytes, model: str) -> Iterator[Callable[[], None]]:
    """As `write_secret` in two steps: the file is written under a hidden name, and what is yielded puts it in place. Not called, it leaves nothing."""
    text = (
        f"# Misinformation key of the model {model!a}, for `garrison serve`.\n"
        "# Keep it on the server, outside the bundle, and secret.\n"
        f"{base64.b64encode(key).decode()}\n"
    )
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")

    def put_in_place() -> None:
        with _explained(path):
            new.replace(path)

    try:
        with _explained(path):
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        yield put_in_place
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KeyFileError(f"{path}: the misinformation key cannot be written: {error.strerror}") from error


def read_secret(path: Path) -> bytes:
    """The key, 32 bytes.

    Raises:
        KeyFileError: no such file, others may read it, or not in the form that `garrison seal` writes.
    """
    if why := why_not_private(path):
        raise KeyFileError(f"the misinformation key: {why}")
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path}: the misinformation key cannot be read: {error.strerror}") from error
    lines = [line.strip() for line in data.splitlines()]
    content = [line for line in lines if line and not line.startswith(b"#")]
    if len(data) > MOST_BYTES or len(content) != 1:
        raise KeyFileError(f"{path}: expected comment lines and one line of base64, as `garrison seal` writes them")
    return parse_secret(content[0].decode("ascii", "replace"), str(path))


def parse_secret(text: str, source: str) -> bytes:
    """The key from its base64 form, as it may stand in an environment variable.

    Args:
        text: base64 of 32 bytes.
        source: where it comes from, for the message.

    Raises:
        KeyFileError: not canonical base64 of 32 bytes. The message does not repeat the text.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise KeyFileError(f"{source}: expected a misinformation key in base64") from error
    if len(key) != MISINFORMATION_KEY_BYTES or base64.b64encode(key).decode() != text:
        raise KeyFileError(f"{source}: expected base64 of {MISINFORMATION_KEY_BYTES} bytes, found {len(key)} bytes")
    return key


def check_secret(manifest: Manifest, key: bytes, source: str) -> bytes:
    """The key, once it is known to be the one that the bundle was sealed with.

    Raises:
        KeyFileError: it belongs to another model or another owner.
    """
    if key_commitment(key) != manifest.key_commitment:
        raise KeyFileError(
            f"{source}: this is not the misinformation key that {manifest.name!r} was sealed with; "
            f"take the {SUFFIX} file that `garrison seal` wrote beside this bundle"
        )
    return key
