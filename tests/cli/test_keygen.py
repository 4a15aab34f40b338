"""`garrison keygen`: a pair that only its owner can read, and no older one lost."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.cli.strict import as_json, fails, run, seal_arguments

from garrison.bundle import key_files
from garrison.bundle.key_files import read_public_key
from garrison.crypto.owner import OwnerKey
from garrison.errors import KeyFileError

pytestmark = pytest.mark.usefixtures("nothing_from_outside")


def test_keygen_writes_a_pair_that_only_its_owner_can_read() -> None:
    told = as_json("keygen", "-o", "owner")
    assert stat.S_IMODE(Path("owner.key").stat().st_mode) == 0o600
    key = OwnerKey.from_pem(Path("owner.key").read_bytes())
    assert told["fingerprint"] == key.public.fingerprint == read_public_key(Path("owner.pub")).fingerprint
    assert told["encrypted"] is False
    assert sorted(p.name for p in Path().iterdir()) == ["owner.key", "owner.pub"]


def test_keygen_never_loses_a_key() -> None:
    run("keygen", "-o", "owner")
    before = Path("owner.key").read_bytes()
    fails(KeyFileError, "keygen", "-o", "owner", match="--force")
    Path("owner.key").rename("kept.key")
    fails(KeyFileError, "keygen", "-o", "owner", match=r"owner\.pub")
    Path("kept.key").rename("owner.key")
    assert Path("owner.key").read_bytes() == before
    run("keygen", "-o", "owner", "--force")
    assert Path("owner.key").read_bytes() != before


def no_space(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk fills up just when this file is to be opened."""
    real = os.open

    def opened(path: Any, *more: Any, **other: Any) -> int:
        if not isinstance(path, int) and Path(os.fsdecode(path)).name.startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *more, **other)

    monkeypatch.setattr(os, "open", opened)


@pytest.mark.parametrize("name", [".owner.key", ".owner.pub", "owner.key", "owner.pub"])
def test_keygen_leaves_no_half_pair(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with monkeypatch.context() as patched:
        no_space(patched, name)
        fails(KeyFileError, "keygen", "-o", "owner", match="cannot be written: No space left")
    assert list(Path().iterdir()) == []
    run("keygen", "-o", "owner")
    before = {file.name: file.read_bytes() for file in Path().iterdir()}
    assert before.keys() == {"owner.key", "owner.pub"}  # control
    with monkeypatch.context() as patched:
        no_space(patched, name)
        fails(KeyFileError, "keygen", "-o", "owner", "--force", match="No space left")
    assert {file.name: file.read_bytes() for file in Path().iterdir()} == before
    run("keygen", "-o", "owner", "--force")
    assert sorted(file.name for file in Path().iterdir()) == ["owner.key", "owner.pub"]
    key = OwnerKey.from_pem(Path("owner.key").read_bytes())
    assert key.public.fingerprint == read_public_key(Path("owner.pub")).fingerprint


def test_keygen_does_not_replace_a_key_that_appears_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    real = key_files.check_pair_target

    def then_another_comes(out: Path, *, force: bool) -> tuple[Path, Path]:
        found = real(out, force=force)
        Path("owner.pub").write_text("another's")
        return found

    monkeypatch.setattr(key_files, "check_pair_target", then_another_comes)
    with pytest.raises(KeyFileError, match=r"owner\.pub exists already"):
        key_files.make_pair(Path("owner"))
    assert {file.name: file.read_text() for file in Path().iterdir()} == {"owner.pub": "another's"}


@pytest.mark.parametrize("way", ["file", "variable"])
def test_a_passphrase_encrypts_the_key_and_is_needed_again(
    way: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("pass").touch(0o600)
    Path("pass").write_text("correct horse\nsecond line\n")
    given: tuple[str, ...] = ("--passphrase-file", "pass")
    if way == "variable":
        monkeypatch.setenv("GARRISON_PASSPHRASE", "correct horse")
        given = ()
    assert as_json("keygen", "-o", "owner", *given)["encrypted"] is True
    assert b"ENCRYPTED" in Path("owner.key").read_bytes()
    run(*seal_arguments(*given))
    monkeypatch.delenv("GARRISON_PASSPHRASE", raising=False)
    fails(KeyFileError, *seal_arguments("--force"), match="passphrase")
    Path("pass").write_text("wrong")
    fails(KeyFileError, *seal_arguments("--force", "--passphrase-file", "pass"), match=r"owner\.key")


def test_a_passphrase_that_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(KeyFileError, "keygen", "-o", "owner", "--encrypt", match="GARRISON_PASSPHRASE")
    Path("empty").touch(0o600)
    fails(KeyFileError, "keygen", "-o", "owner", "--passphrase-file", "empty", match="empty")
    fails(KeyFileError, "keygen", "-o", "owner", "--passphrase-file", "nowhere", match="nowhere")
    monkeypatch.setenv("GARRISON_PASSPHRASE", "")
    fails(KeyFileError, "keygen", "-o", "owner", match="empty")
    assert not Path("owner.key").exists()
