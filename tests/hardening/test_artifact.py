from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from garrison.bundle.manifest import InputSpec
from garrison.errors import ModelFileError, TargetExistsError
from garrison.hardening.artifact import DESCRIPTION_FILE, Hardened, read_hardened, write_hardened
from garrison.types import DefenseSpec, Task

DESCRIPTION = Hardened(
    task=Task.CLASSIFICATION,
    labels=("a", "b", "c"),
    inputs=(InputSpec(name="x", datatype="FP32", shape=(2,), minimum=0.0, maximum=(1.0, 2.0)),),
    guard=(DefenseSpec(name="release", parameters={"mode": "full"}),),
    metrics={"tau": 0.3},
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = write_hardened(tmp_path / "h", DESCRIPTION, b"graph", b"wrong")
    assert read_hardened(tmp_path / "h") == written
    assert written.misinformation == "misinformation.onnx"
    assert written.guard == DESCRIPTION.guard
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h"]  # nothing temporary is left


def test_without_misinformation(tmp_path: Path) -> None:
    write_hardened(tmp_path / "h", DESCRIPTION, b"graph")
    assert read_hardened(tmp_path / "h").misinformation is None
    assert not (tmp_path / "h" / "misinformation.onnx").exists()


@pytest.mark.parametrize("file", ["model.onnx", "misinformation.onnx"])
def test_a_changed_graph_is_refused(tmp_path: Path, file: str) -> None:
    write_hardened(tmp_path / "h", DESCRIPTION, b"graph", b"wrong")
    (tmp_path / "h" / file).write_bytes(b"grapH")
    with pytest.raises(ModelFileError, match="changed since it was hardened"):
        read_hardened(tmp_path / "h")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "garrison-hardened/9"}, "expected format"),
        ({"extra": 1}, "unknown field"),
        ({"labels": 3}, "not a valid description"),
        (
            {"model": "../model.onnx", "sha256": {"../model.onnx": "0", "misinformation.onnx": "0"}},
            "not a plain file name",
        ),
        ({"sha256": {}}, "expected digests"),
        ({"task": "guessing"}, "not a valid description"),
    ],
)
def test_a_bad_description_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_hardened(tmp_path / "h", DESCRIPTION, b"graph", b"wrong")
    file = tmp_path / "h" / DESCRIPTION_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelFileError, match=message):
        read_hardened(tmp_path / "h")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / DESCRIPTION_FILE).write_bytes(content)
    with pytest.raises(ModelFileError):
        read_hardened(tmp_path)


def test_no_folder_and_a_missing_graph(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no HARDENED folder"):
        read_hardened(tmp_path / "nowhere")
    write_hardened(tmp_path / "h", DESCRIPTION, b"graph")
    (tmp_path / "h" / "model.onnx").unlink()
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        read_hardened(tmp_path / "h")


def test_only_a_hardened_folder_is_ever_replaced(tmp_path: Path) -> None:
    write_hardened(tmp_path / "h", DESCRIPTION, b"graph", b"wrong")
    with pytest.raises(TargetExistsError, match="--force"):
        write_hardened(tmp_path / "h", DESCRIPTION, b"new")
    write_hardened(tmp_path / "h", DESCRIPTION, b"new", force=True)
    assert sorted(p.name for p in (tmp_path / "h").iterdir()) == ["hardened.json", "model.onnx"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(TargetExistsError, match="not replaced"):
        write_hardened(tmp_path / "photos", DESCRIPTION, b"new", force=True)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


def test_neither_torch_nor_onnx_is_needed() -> None:
    code = (
        "import garrison.hardening.artifact, garrison.hardening.calibration, sys; "
        "print([m for m in ('torch', 'onnx', 'ndonnx') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
