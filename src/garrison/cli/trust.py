"""Which public keys a command trusts. Never one that lies in a bundle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from garrison.bundle.key_files import read_public_key
from garrison.config import load_config
from garrison.crypto.owner import OwnerPublicKey

VARIABLE = "GARRISON_TRUST"

trust_option = click.option(
    "--trust",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Public key (OWNER.pub) that may have signed; may be given several times. Also {VARIABLE}, or trust in garrison.toml.",
)


def trusted_keys(given: Sequence[Path], configured: Sequence[str] = ()) -> list[OwnerPublicKey]:
    """The keys on the command line; without any, those of GARRISON_TRUST; without these, those of the settings.

    The nearest place counts alone, so that a command can trust less than the machine does.

    Args:
        given: files named by --trust.
        configured: files named by `trust` in garrison.toml.

    Returns:
        The keys; none where no place names any.

    Raises:
        KeyFileError: a named file cannot be read or holds no public key.
    """
    files = list(given)
    if not files:
        files = [Path(name) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    if not files:
        files = [Path(name) for name in configured]
    return [read_public_key(file) for file in files]


def trusted_keys_of_user(given: Sequence[Path]) -> list[OwnerPublicKey]:
    """As `trusted_keys`, with the garrison.toml of the current folder."""
    if given or os.environ.get(VARIABLE):
        return trusted_keys(given)
    return trusted_keys((), load_config(None).trust)
