"""Contract of all formats: nothing that a file brings along is run."""

from __future__ import annotations

import importlib
import io
import pickle
import zipfile
from pathlib import Path

import pytest
from tests.bundle.conftest import make_network

from garrison.errors import GarrisonError, ModelFileError, UnsupportedModelError
from garrison.sealing.formats import PICKLES, READERS, read_source


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_each_reader_is_there_and_refuses_rubbish(suffix: str, tmp_path: Path) -> None:
    module, _, attribute = READERS[suffix].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))
    for content in (b"", b"rubbish", b"PK\x03\x04rubbish", bytes(1000)):
        path = tmp_path / f"model{suffix}"
        path.write_bytes(content)
        with pytest.raises(GarrisonError, match=rf"model\{suffix}"):
            read_source(path)
    with pytest.raises(ModelFileError):
        read_source(tmp_path / f"nowhere{suffix}")


def test_an_onnx_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(make_network().SerializeToString())
    source = read_source(path)
    assert (source.format, source.declared) == ("onnx", "auto")
    with pytest.raises(UnsupportedModelError, match="double"):
        read_source(path, double=True)


class Bomb:
    """A pickle that would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (eval, (f"open({str(self.path)!r}, 'w').close()",))  # type: ignore[return-value]


@pytest.mark.parametrize("suffix", [*sorted(PICKLES), *sorted(READERS)])
def test_a_pickle_is_refused_by_name_and_by_content_and_never_read(suffix: str, tmp_path: Path) -> None:
    path, trap = tmp_path / f"model{suffix}", tmp_path / "trap"
    path.write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(UnsupportedModelError, match="runs when it is read"):
        read_source(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())  # noqa: S301  the control arm: the trap works
    assert trap.exists()


def test_a_zip_with_a_pickle_is_refused_under_every_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    for suffix in READERS:
        path = tmp_path / f"model{suffix}"
        path.write_bytes(buffer.getvalue())
        with pytest.raises(UnsupportedModelError, match="pickle"):
            read_source(path)


def test_a_file_whose_name_lies_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", "{}")
    with pytest.raises(ModelFileError, match="content"):
        read_source(path)
    (tmp_path / "model.h5").write_bytes(b"x")
    with pytest.raises(UnsupportedModelError, match=r"\.onnx"):
        read_source(tmp_path / "model.h5")
