"""The owner's private key and its passphrase, for the commands that need them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from garrison.bundle.key_files import read_key_file, read_private_key
from garrison.bundle.private import why_not_private
from garrison.crypto.owner import OwnerKey
from garrison.errors import KeyFileError

VARIABLE = "GARRISON_PASSPHRASE"
MOST_PASSPHRASE_BYTES = 1023
"""More than that the key format's encryption does not take."""

passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"File whose first line is the passphrase of the owner's key; also the variable {VARIABLE}.",
)


def given_passphrase(file: Path | None) -> bytes | None:
    """The passphrase from the file or the variable; None where neither is given.

    Raises:
        KeyFileError: the file cannot be read, or the passphrase is empty.
    """
    if file is None:
        text = os.environ.get(VARIABLE)
        if text == "":
            raise KeyFileError(f"{VARIABLE} is set and empty; give a passphrase or unset it")
        return None if text is None else _checked(os.fsencode(text), VARIABLE)
    if why := why_not_private(file):
        raise KeyFileError(f"the passphrase: {why}")
    lines = read_key_file(file, "passphrase").splitlines()
    if not lines or not lines[0]:
        raise KeyFileError(f"{file}: expected a passphrase on the first line, found none")
    return _checked(lines[0], str(file))


def ask_passphrase(prompt: str, *, confirm: bool = False) -> bytes:
    """Ask a person.

    Raises:
        KeyFileError: nobody is there to be asked.
    """
    if not _somebody_is_there():
        raise KeyFileError(f"a passphrase is needed and nobody can be asked: give --passphrase-file or {VARIABLE}")
    text: str = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    return _checked(text.encode("utf-8", "surrogateescape"), "passphrase")


def _somebody_is_there() -> bool:
    # Python sets None where the program was started with its standard input closed.
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def _checked(passphrase: bytes, source: str) -> bytes:
    if len(passphrase) > MOST_PASSPHRASE_BYTES:
        raise KeyFileError(
            f"{source}: expected a passphrase of at most {MOST_PASSPHRASE_BYTES} bytes, found {len(passphrase)}"
        )
    return passphrase


def read_owner_key(file: Path, passphrase_file: Path | None) -> OwnerKey:
    """The key from OWNER.key; asks for the passphrase where the key has one and none was given.

    Raises:
        KeyFileError: it cannot be read, or the passphrase is wrong.
    """
    pem = read_key_file(file, "owner's key")
    passphrase = given_passphrase(passphrase_file) if b"ENCRYPTED" in pem else None
    if passphrase is None and b"ENCRYPTED" in pem:
        passphrase = ask_passphrase(f"Passphrase of {file}")
    return read_private_key(file, passphrase)
