from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from garrison.bundle.folder import Folder
from garrison.errors import BundleError, MissingFileError, UnexpectedFileError


def filled(path: Path) -> Path:
    (path / "a" / "b").mkdir(parents=True)
    (path / "one").write_bytes(b"1")
    (path / "a" / "two").write_bytes(b"22")
    (path / "a" / "b" / "three").write_bytes(b"333")
    return path


NAMES = {"one", "a/two", "a/b/three"}


def test_exactly_these_files_are_there(tmp_path: Path) -> None:
    with Folder(filled(tmp_path)) as folder:
        folder.check_exactly(NAMES)
        with pytest.raises(UnexpectedFileError) as extra:
            folder.check_exactly(NAMES - {"a/b/three"})
        assert extra.value.file == "a/b"
        with pytest.raises(MissingFileError) as missing:
            folder.check_exactly(NAMES | {"a/b/four"})
        assert missing.value.file == "a/b/four"


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/etc/hostname", ""])
def test_a_name_that_leaves_the_folder_is_never_among_its_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("outside")
    with Folder(filled(tmp_path / "inside")) as folder, pytest.raises(MissingFileError):
        folder.check_exactly(NAMES | {name})


def test_a_file_is_read_as_far_as_asked_and_one_byte(tmp_path: Path) -> None:
    with Folder(filled(tmp_path)) as folder:
        assert folder.read("a/b/three", 3) == b"333"
        assert folder.read("a/b/three", 10) == b"333"
        assert folder.read("a/b/three", 1) == b"33"
        assert folder.size("a/b/three") == 3


def test_exchanging_the_folder_under_us_changes_nothing(tmp_path: Path) -> None:
    with Folder(filled(tmp_path / "x")) as folder:
        (tmp_path / "x").rename(tmp_path / "moved")
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "one").write_bytes(b"other")
        assert folder.read("one", 5) == b"1"


def test_a_link_on_the_way_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "x")
    (tmp_path / "x" / "a").rename(tmp_path / "a")
    (tmp_path / "x" / "a").symlink_to(tmp_path / "a")
    with Folder(tmp_path / "x") as folder, pytest.raises(UnexpectedFileError):
        folder.read("a/two", 5)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "one").chmod(0)
    (tmp_path / "a" / "b").chmod(0)
    with Folder(tmp_path) as folder:
        with pytest.raises(BundleError, match="cannot be read"):
            folder.read("one", 5)
        with pytest.raises(BundleError, match="cannot be listed"):
            folder.check_exactly(NAMES)
    (tmp_path / "a" / "b").chmod(0o700)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    filled(tmp_path)
    for _ in range(5):
        with Folder(tmp_path) as folder:
            folder.check_exactly(NAMES)
            folder.read("a/two", 5)
            with pytest.raises(MissingFileError):
                folder.read("a/none", 5)
            with pytest.raises(UnexpectedFileError):
                folder.read("a/b", 5)
    with Folder(tmp_path):
        assert opened_below(tmp_path), "control"
    assert opened_below(tmp_path) == []


def opened_below(folder: Path) -> list[Path]:
    """What this process has open there; other tests' servers in it open and close descriptors of their own."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(descriptor.readlink())
    return [path for path in found if path.is_relative_to(folder)]


def test_a_folder_of_ten_thousand_strange_files_is_not_read_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    for number in range(10_000):
        os.mknod(tmp_path / "a" / f"{number:05}")
    looked, scandir = [], os.scandir

    @contextmanager
    def counted(fd: int) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(fd) as entries:
            yield (looked.append(entry.name) or entry for entry in entries)  # type: ignore[func-returns-value]

    monkeypatch.setattr(os, "scandir", counted)
    with Folder(tmp_path) as folder, pytest.raises(UnexpectedFileError, match="was not signed"):
        folder.check_exactly(NAMES)
    assert len(looked) <= 3 * (len(NAMES) + 2 + 1)  # three folders, in each one more than may be there
