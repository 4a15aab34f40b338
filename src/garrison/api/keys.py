"""`keygen` and `verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from garrison.bundle.key_files import KeyPair, make_pair, read_public_key
from garrison.bundle.reader import VerifiedBundle
from garrison.bundle.reader import verify as verify_bundle
from garrison.crypto.owner import OwnerPublicKey
from garrison.errors import ConfigError

Trust = str | Path | Sequence[str | Path]
"""A file with a public key that may have signed, or several."""


def keygen(out: str | Path, *, passphrase: str | None = None, force: bool = False) -> KeyPair:
    """Make an owner's key pair: OUT.key seals and stays with you, OUT.pub is given to all who verify.

    Args:
        passphrase: encrypts OUT.key; with None, whoever reads it can sign in your name.
        force: replace an older pair.

    Raises:
        KeyFileError: a file is there already, or cannot be written.
        ConfigError: the passphrase is empty, and would encrypt nothing.
    """
    if passphrase == "":
        raise ConfigError("the passphrase is empty; None leaves the key without one")
    return make_pair(Path(out), None if passphrase is None else passphrase.encode(), force=force)


def verify(bundle: str | Path, trust: Trust) -> VerifiedBundle:
    """Check every byte of a bundle against trusted keys.

    Raises:
        BundleError: it must not be used; the type says why.
        KeyFileError: a key cannot be read.
    """
    return verify_bundle(Path(bundle), trusted(trust))


def trusted(trust: Trust) -> list[OwnerPublicKey]:
    """The keys in these files; without any nothing is trusted, and whoever verifies says so."""
    files = [trust] if isinstance(trust, str | Path) else trust or ()
    return [read_public_key(Path(file)) for file in files]
