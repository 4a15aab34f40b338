"""A small real bundle with several chunks, two of them of one size."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from garrison.bundle.manifest import InputSpec, Manifest, Provenance
from garrison.crypto.canonical import sha256_hex
from garrison.crypto.owner import OwnerKey
from garrison.sealing import parameters
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.sealing.sign import sign_digests
from garrison.types import DefenseSpec, Task

FEATURES, HIDDEN, CLASSES = 6, 16, 3
SMALL_CHUNK_BYTES = 512


def make_network(seed: int = 0, outputs: int = CLASSES) -> onnx.ModelProto:
    """A classifier of four layers, built by hand."""
    rng = np.random.default_rng(seed)
    sizes = (FEATURES, HIDDEN, HIDDEN, HIDDEN, outputs)
    nodes, tensors, last = [], [], "x"
    for i, (m, n) in enumerate(pairwise(sizes)):
        tensors.append(numpy_helper.from_array(rng.normal(size=(m, n)).astype(np.float32), f"w{i}"))
        tensors.append(numpy_helper.from_array(rng.normal(size=n).astype(np.float32), f"b{i}"))
        nodes.append(helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"z{i}"]))
        nodes.append(helper.make_node("Relu", [f"z{i}"], [f"h{i}"]))
        last = f"h{i}"
    nodes[-1] = helper.make_node("Softmax", [f"z{len(sizes) - 2}"], ["probabilities"], axis=1)
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", FEATURES])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", outputs])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_draft(**changes: object) -> Draft:
    given: dict[str, object] = {
        "name": "small",
        "version": 1,
        "model": make_network(),
        "task": Task.CLASSIFICATION,
        "labels": ("a", "b", "c"),
        "inputs": (InputSpec(name="x", datatype="FP32", shape=(FEATURES,), minimum=-4.0, maximum=4.0),),
        "guard": (DefenseSpec(name="bounds"), DefenseSpec(name="release")),
        "provenance": Provenance(created="2026-01-01T00:00:00Z", source_format="onnx", source_sha256="0" * 64),
        "rows": {"x": np.random.default_rng(1).normal(size=(5, FEATURES)).astype(np.float32)},
    }
    return Draft(**{**given, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sealed:
    path: Path
    owner: OwnerKey
    manifest: Manifest


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    path, owner = tmp_path_factory.mktemp("bundle") / "small", OwnerKey.generate()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameters, "CHUNK_BYTES", SMALL_CHUNK_BYTES)
        manifest = seal(make_draft(), owner, path)
    assert len({chunk.size for chunk in manifest.graph.chunks}) < len(manifest.graph.chunks)
    return Sealed(path, owner, manifest)


@pytest.fixture
def sealed(original: Sealed, tmp_path: Path) -> Sealed:
    """A private copy that a test may damage."""
    shutil.copytree(original.path, tmp_path / "small")
    return Sealed(tmp_path / "small", original.owner, original.manifest)


def resign(path: Path, owner: OwnerKey) -> None:
    """Sign whatever lies in the folder now, as an owner who errs would."""
    files = {
        f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != "model.sig"
    }
    (path / "model.sig").write_bytes(sign_digests({n: sha256_hex(d) for n, d in files.items()}, owner, "small"))
