from __future__ import annotations

import base64
import stat
from pathlib import Path

import msgspec
import pytest
from tests.bundle.conftest import Sealed

from garrison.bundle.secret import check_secret, parse_secret, read_secret, secret_path, write_secret
from garrison.crypto.owner import key_commitment
from garrison.errors import KeyFileError

KEY = bytes(range(32))


def test_a_secret_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "BUNDLE.secret"
    write_secret(path, KEY, "a name\nwith a line")
    assert read_secret(path) == KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["BUNDLE.secret"]


def test_it_lies_beside_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert secret_path(Path("a/b/")) == tmp_path / "a" / "b.secret"
    assert secret_path(Path()) == tmp_path.with_name(tmp_path.name + ".secret")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# only a comment\n",
        b"not base64!\n",
        base64.b64encode(KEY[:31]),
        base64.b64encode(KEY) + b"\n" + base64.b64encode(KEY),
        base64.b64encode(KEY).rstrip(b"="),
        b"\xff" * 44,
        b"#" * 5000 + b"\n" + base64.b64encode(KEY),
    ],
)
def test_another_content_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.secret"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match=r"x\.secret") as caught:
        read_secret(path)
    assert base64.b64encode(KEY[:31]).decode() not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"x\.secret"):
        read_secret(tmp_path / "x.secret")
    with pytest.raises(KeyFileError, match="written"):
        write_secret(tmp_path / "nowhere" / "x.secret", KEY, "m")


def test_the_key_of_another_model_is_refused(sealed: Sealed) -> None:
    manifest = msgspec.structs.replace(sealed.manifest, key_commitment=key_commitment(KEY))
    assert check_secret(manifest, KEY, "x.secret") == KEY
    with pytest.raises(KeyFileError, match="small"):
        check_secret(manifest, bytes(32), "x.secret")
    assert parse_secret(base64.b64encode(KEY).decode(), "GARRISON_SECRET") == KEY
