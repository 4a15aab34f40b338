"""The one reader of users' .npz files."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from garrison.errors import InputError, PlanError
from garrison.npz import read_arrays
from garrison.types import Array
from tests.commands import save


def npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def archive(file: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(f"{name}.npy", data)
    return file


def test_reads_what_numpy_writes(tmp_path: Path) -> None:
    arrays: dict[str, Array] = {
        "x": np.arange(12, dtype=np.float32).reshape(3, 4),
        "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "empty": np.zeros((0, 5)),
        "one": np.array(7),
        "labels": np.array(["a", "ünf"]),
        "big_endian": np.arange(3, dtype=">i4"),
    }
    found = read_arrays(save(tmp_path / "a.npz", **arrays))
    assert found.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_only_what_was_asked_for_is_read(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.npz", x=npy(np.zeros(3)), evil=b"no array at all")
    assert list(read_arrays(file, names={"x"})) == ["x"]
    with pytest.raises(InputError, match="damaged"):
        read_arrays(file)


class Bomb:
    """Unpickling it is seen."""

    gone_off = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return setattr, (Bomb, "gone_off", True)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    objects = npy(np.array([Bomb()], dtype=object))
    with pytest.raises(InputError, match="Python objects"):
        read_arrays(archive(tmp_path / "a.npz", x=objects))
    assert not Bomb.gone_off
    np.load(io.BytesIO(objects), allow_pickle=True)  # control: the same bytes do go off
    assert Bomb.gone_off


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.npz", x=npy(np.zeros(1_000_000)))
    assert file.stat().st_size < 20_000
    with pytest.raises(InputError, match=r"unpack to 8,000,128 bytes; at most 1,000,000"):
        read_arrays(file, most_bytes=1_000_000)
    assert read_arrays(file)["x"].nbytes == 8_000_000  # control: under the limit it is read


@pytest.mark.parametrize("claimed", [1, 10**15], ids=["less", "more"])
def test_a_header_that_lies_about_the_size(tmp_path: Path, claimed: int) -> None:
    with pytest.raises(InputError, match="header states"):
        read_arrays(archive(tmp_path / "a.npz", x=_claiming(claimed)))
    assert len(read_arrays(archive(tmp_path / "b.npz", x=_claiming(8)))["x"]) == 8  # control: the truth is read


def _claiming(rows: int) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (rows,)})
    return stream.getvalue() + bytes(64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"hello", "no zip archive"),
        (npy(np.zeros(3)), r"one \.npy array"),
        (None, "cannot be read: No such file"),
    ],
    ids=["empty", "text", "npy", "missing"],
)
def test_says_what_was_found_instead(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "a.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PlanError, match=message):
        read_arrays(file, error=PlanError)


def test_a_damaged_or_cut_file(tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", x=np.arange(1000))
    whole = file.read_bytes()
    for broken in (whole[:500], whole[:300] + b"\xff\x00" + whole[302:], whole[:-30]):
        file.write_bytes(broken)
        with pytest.raises(InputError, match=r"a\.npz"):
            read_arrays(file)


def test_too_many_arrays(tmp_path: Path) -> None:
    one = npy(np.zeros(1))
    with pytest.raises(InputError, match="at most 1024 arrays, found 1025"):
        read_arrays(archive(tmp_path / "a.npz", **{f"a{i}": one for i in range(1025)}))
