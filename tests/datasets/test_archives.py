from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.datasets.conftest import link, tgz

from garrison.datasets.archives import WrongBytesError, gunzip, read_archive, read_tar


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_only_the_wanted_members_are_read_and_nothing_is_unpacked(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = write(folder, "a.tgz", tgz({"./data/x": b"1", "../evil": b"2", "/absolute": b"3", "data/y": b"4"}))

    assert read_archive(path, {"data/x"}) == {"data/x": b"1"}
    assert sorted(tmp_path.rglob("*")) == [folder, path]


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "data/y"])
def test_a_link_is_refused_where_a_file_is_wanted(tmp_path: Path, target: str) -> None:
    path = write(tmp_path, "a.tgz", tgz({"data/y": b"4", "data/x": link("data/x", target)}))

    assert read_archive(path, {"data/y"}) == {"data/y": b"4"}  # the control: the archive itself is readable
    with pytest.raises(WrongBytesError, match="no regular file"):
        read_archive(path, {"data/x"})


def test_a_member_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("garrison.datasets.archives.MEMBER_BYTES", 10)
    short, long = (write(tmp_path, f"{n}.tgz", tgz({"x": bytes(n)})) for n in (10, 11))

    assert read_archive(short, {"x"}) == {"x": bytes(10)}
    with pytest.raises(WrongBytesError, match="no regular file of at most 10 bytes"):
        read_archive(long, {"x"})


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_archive_is_an_error(tmp_path: Path, share: float) -> None:
    whole = tgz({"x": np.random.default_rng(0).bytes(20_000)})
    assert "x" in read_archive(write(tmp_path, "whole.tgz", whole), {"x", "y"})
    with pytest.raises(WrongBytesError, match="cannot be read"):
        read_archive(write(tmp_path, "a.tgz", whole[: int(share * len(whole))]), {"x", "y"})


def test_a_wheel_is_read_as_a_zip_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/x.csv", b"1,2")
        archive.writestr("../evil", b"2")
    assert read_archive(path, {"m/x.csv", "m/absent"}) == {"m/x.csv": b"1,2"}

    monkeypatch.setattr("garrison.datasets.archives.MEMBER_BYTES", 2)
    with pytest.raises(WrongBytesError, match="longer than 2 bytes"):
        read_archive(path, {"m/x.csv"})


def test_what_is_no_archive_is_an_error(tmp_path: Path) -> None:
    for name in ("a.whl", "a.tgz"):
        with pytest.raises(WrongBytesError, match="cannot be read"):
            read_archive(write(tmp_path, name, b"<html>sign in to this network</html>"), {"x"})
    with pytest.raises(WrongBytesError, match="cannot be read"):
        read_tar(io.BytesIO(b"no tar"), {"x"}, "r:")


def test_decompression_is_bounded() -> None:
    packed = gzip.compress(bytes(1000))
    assert gunzip(packed, 1000) == bytes(1000)
    with pytest.raises(WrongBytesError, match="more than the 999 bytes"):
        gunzip(packed, 999)
    for broken in (packed[:-3], b"plain", packed[:12] + b"\xff" + packed[13:]):
        with pytest.raises(WrongBytesError):
            gunzip(broken, 1000)
