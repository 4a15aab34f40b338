"""A secret that everybody on the machine may read is none: whoever reads one refuses it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from garrison.bundle.key_files import read_private_key
from garrison.bundle.private import why_not_private
from garrison.bundle.secret import read_secret
from garrison.cli.owner_key import given_passphrase
from garrison.config import ServerConfig
from garrison.crypto.owner import OwnerKey
from garrison.errors import ConfigError, KeyFileError
from garrison.server import webhook
from garrison.server.signing import signatures_of

PASSPHRASE = b"a long one"
RANDOM = base64.b64encode(bytes(range(32)))
READERS: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    "the misinformation key": (lambda: RANDOM, read_secret),
    "the owner's key": (lambda: OwnerKey.generate().to_pem(None), lambda path: read_private_key(path, None)),
    "the webhook's secret": (lambda: b"whsec_" + RANDOM, webhook.read_secret),
    "the passphrase": (lambda: PASSPHRASE, given_passphrase),
    "signature_secret": (lambda: RANDOM, lambda path: signatures_of(ServerConfig(signature_secret=str(path)))),
}


@pytest.mark.parametrize("name", READERS)
def test_a_secret_that_everybody_may_read_is_refused(name: str, tmp_path: Path) -> None:
    make, read = READERS[name]
    path = tmp_path / "secret"
    path.write_bytes(make())
    for mode in (0o600, 0o400, 0o640):
        path.chmod(mode)
        read(path)
    for mode in (0o644, 0o604, 0o602):
        path.chmod(mode)
        with pytest.raises((ConfigError, KeyFileError), match=f"{name}: everybody .*chmod o-rwx"):
            read(path)


def test_what_a_passphrase_protects_may_lie_open(tmp_path: Path) -> None:
    path = tmp_path / "OWNER.key"
    path.write_bytes(OwnerKey.generate().to_pem(PASSPHRASE))
    path.chmod(0o644)
    read_private_key(path, PASSPHRASE)


def test_what_is_no_file_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    assert not why_not_private(tmp_path / "none")
    assert not why_not_private(Path("/dev/null"))
