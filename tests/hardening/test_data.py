from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from garrison.errors import CalibrationError, GarrisonError, ModelFileError
from garrison.hardening.data import for_model, read_npz, split

X = np.zeros((4, 3), dtype=np.float32)


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path / "d.npz", **arrays)
    return path / "d.npz"


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    rows = read_npz(save(tmp_path, x=X, y=np.arange(4), labels=np.array(["a", "b", "c", "d"])))
    assert len(rows) == 4
    assert rows.labels == ("a", "b", "c", "d")
    assert rows.y is not None
    assert rows.y.tolist() == [0, 1, 2, 3]
    assert len(rows.sha256) == 64


def test_class_names_become_numbers(tmp_path: Path) -> None:
    rows = read_npz(save(tmp_path, x=X, y=np.array(["b", "a", "b", "b"]), labels=np.array(["a", "b"])))
    assert rows.y is not None
    assert rows.y.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("arrays", "kind", "message"),
    [
        ({"y": np.arange(4)}, CalibrationError, "expected an array x"),
        ({"x": X, "y": np.arange(3)}, CalibrationError, "equal length"),
        ({"x": np.zeros((0, 3)), "y": np.zeros(0)}, CalibrationError, "no rows"),
        ({"x": np.array(["a", "b"])}, CalibrationError, "rows of numbers"),
        ({"x": np.zeros(3, dtype=np.complex128)}, CalibrationError, "rows of numbers"),
        ({"x": np.float32(3)}, CalibrationError, "rows of numbers"),
        ({"x": X, "y": np.array(["a", "b", "a", "b"])}, CalibrationError, "array labels"),
        (
            {"x": X, "y": np.array(["a", "b", "z", "b"]), "labels": np.array(["a", "b"])},
            CalibrationError,
            "'z' is not among",
        ),
        ({"x": X, "y": np.zeros((4, 2))}, CalibrationError, "one entry a row"),
        ({"x": np.array([{}, {}], dtype=object)}, ModelFileError, "Python objects"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, Any], kind: type[GarrisonError], message: str) -> None:
    with pytest.raises(GarrisonError, match=message) as caught:
        read_npz(save(tmp_path, **arrays))
    assert type(caught.value) is kind


class Boom:
    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return (open, ("boom", "w"))


def test_nothing_is_ever_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, x=np.array([Boom()], dtype=object))
    with pytest.raises(GarrisonError):
        read_npz(path)
    assert not (tmp_path / "boom").exists()
    np.load(path, allow_pickle=True)["x"][0].close()  # control: the file is indeed harmful
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello", pickle.dumps([1, 2, 3])])
def test_not_an_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"not an \.npz"):
        read_npz(tmp_path / "d.npz")


def test_a_truncated_archive_and_no_file(tmp_path: Path) -> None:
    path = save(tmp_path, x=X)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFileError):
        read_npz(path)
    with pytest.raises(ModelFileError, match="No such file"):
        read_npz(tmp_path / "none.npz")
    with pytest.raises(ModelFileError):
        read_npz(tmp_path)


def test_rows_are_fitted_to_the_model(tmp_path: Path) -> None:
    rows = read_npz(save(tmp_path, x=np.zeros((4, 3), dtype=np.uint8)))
    assert for_model(rows, {"image": ("FP32", (3,))})["image"].dtype == np.float32
    assert for_model(rows, {"image": ("FP32", (None,))})["image"].shape == (4, 3)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"image": ("FP32", (4,))}, "the model takes rows of"),
        ({"image": ("FP32", (1, 3))}, "the model takes rows of"),
        ({"image": ("INT64", (3,))}, "convert them first"),
        ({"a": ("FP32", (3,)), "b": ("FP32", (3,))}, "the model takes"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, wanted: Any, message: str) -> None:
    rows = read_npz(save(tmp_path, x=X))
    with pytest.raises(CalibrationError, match=message):
        for_model(rows, wanted)


def test_several_inputs_by_name(tmp_path: Path) -> None:
    rows = read_npz(save(tmp_path, a=X, b=np.arange(4), y=np.arange(4)))
    found = for_model(rows, {"b": ("INT64", ()), "a": ("FP32", (3,))})
    assert list(found) == ["b", "a"]


def test_split_keeps_rows_and_answers_together() -> None:
    x, y = np.arange(100), np.arange(100)
    kept, held_out = split({"x": x}, y, 0.2, seed=1)
    assert (len(kept), len(held_out)) == (80, 20)
    assert kept.y is not None
    assert (kept.inputs["x"] == kept.y).all()
    assert sorted([*kept.inputs["x"], *held_out.inputs["x"]]) == list(range(100))
