"""`garrison keygen`: an owner's key pair."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import click

from garrison.cli.output import console, json_option, notes, show_json
from garrison.cli.owner_key import ask_passphrase, given_passphrase, passphrase_option
from garrison.crypto.owner import OwnerKey
from garrison.errors import KeyFileError


@click.command()
@click.option(
    "-o",
    "--output",
    "out",
    required=True,
    type=click.Path(path_type=Path),
    help="OWNER: writes OWNER.key and OWNER.pub.",
)
@click.option("--encrypt", is_flag=True, help="Encrypt OWNER.key; asks for a passphrase where none is given.")
@passphrase_option
@click.option(
    "--force", is_flag=True, help="Replace an older pair. Bundles that it signed cannot be sealed again with it."
)
@json_option
def keygen(out: Path, encrypt: bool, passphrase_file: Path | None, force: bool, as_json: bool) -> None:
    """Make an owner's key pair: OWNER.key seals and stays with you, OWNER.pub is given to all who verify.

    OWNER.key is encrypted when a passphrase is given.
    """
    private, public = (out.with_name(out.name + suffix) for suffix in (".key", ".pub"))
    for file in (private, public):
        if file.exists() and not force:
            raise KeyFileError(f"{file} exists already; give another name, or --force to replace it")
    passphrase = given_passphrase(passphrase_file)
    if passphrase is None and encrypt:
        passphrase = ask_passphrase("Passphrase of the new key", confirm=True)
    owner = OwnerKey.generate()
    _write(private, owner.to_pem(passphrase), 0o600)
    _write(public, owner.public.pem, 0o644)
    if as_json:
        found = {"private": str(private), "public": str(public), "fingerprint": owner.public.fingerprint}
        show_json({**found, "encrypted": passphrase is not None})
        return
    console.print(f"private key  {private}" + (" (encrypted)" if passphrase else ""), markup=False, soft_wrap=True)
    console.print(f"public key   {public}", markup=False, soft_wrap=True)
    console.print(f"fingerprint  {owner.public.fingerprint}", markup=False, soft_wrap=True)
    if passphrase is None:
        notes.print(f"{private} is not encrypted: whoever reads it can sign in your name.", soft_wrap=True)


def _write(file: Path, data: bytes, mode: int) -> None:
    """The file appears whole, and is never readable by others on the way."""
    new = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
        new.replace(file)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise KeyFileError(f"{file}: cannot be written: {error.strerror}") from error
