"""The owner's private key and its passphrase, for the commands that need them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from garrison.bundle.key_files import read_key_file, read_private_key
from garrison.crypto.owner import OwnerKey
from garrison.errors import KeyFileError

VARIABLE = "GARRISON_PASSPHRASE"

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
        return None if text is None else text.encode()
    lines = read_key_file(file, "passphrase").splitlines()
    if not lines or not lines[0]:
        raise KeyFileError(f"{file}: expected a passphrase on the first line, found none")
    return lines[0]


def ask_passphrase(prompt: str, *, confirm: bool = False) -> bytes:
    """Ask a person.

    Raises:
        KeyFileError: nobody is there to be asked.
    """
    if not sys.stdin.isatty():
        raise KeyFileError(f"a passphrase is needed and nobody can be asked: give --passphrase-file or {VARIABLE}")
    text: str = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    return text.encode()


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
