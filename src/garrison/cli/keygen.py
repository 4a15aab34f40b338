"""`garrison keygen`: an owner's key pair."""

from __future__ import annotations

from pathlib import Path

import click

from garrison.bundle.key_files import check_pair_target, make_pair
from garrison.cli.output import console, json_option, notes, show_json
from garrison.cli.owner_key import ask_passphrase, given_passphrase, passphrase_option


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
    check_pair_target(out, force=force)
    passphrase = given_passphrase(passphrase_file)
    if passphrase is None and encrypt:
        passphrase = ask_passphrase("Passphrase of the new key", confirm=True)
    pair = make_pair(out, passphrase, force=force)
    if as_json:
        found = {"private": str(pair.private), "public": str(pair.public), "fingerprint": pair.fingerprint}
        show_json({**found, "encrypted": passphrase is not None})
        return
    console.print(f"private key  {pair.private}" + (" (encrypted)" if passphrase else ""), markup=False, soft_wrap=True)
    console.print(f"public key   {pair.public}", markup=False, soft_wrap=True)
    console.print(f"fingerprint  {pair.fingerprint}", markup=False, soft_wrap=True)
    if passphrase is None:
        told = f"{pair.private} is not encrypted: whoever reads it can sign in your name."
        notes.print(told, markup=False, soft_wrap=True)
