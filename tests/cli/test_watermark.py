"""`garrison seal --watermark` and `garrison watermark verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.commands import as_json, fails, run, save
from tests.models import CLASSES, PIXELS, images, mlp

from garrison.bundle.key_files import read_public_key
from garrison.bundle.reader import verify
from garrison.bundle.secret import read_secret
from garrison.enclave.service import Service
from garrison.errors import ConfigError, KeyFileError, NoTrustedKeyError, UnsupportedModelError
from garrison.types import Array

X = images(600)


def lookup(x: Array, p: Array) -> onnx.ModelProto:
    """A model that has learnt these answers by heart: the answer to the nearest row that it knows."""
    flat = x.reshape(len(x), -1).astype(np.float32)
    helper, numpy_helper, kinds = onnx.helper, onnx.numpy_helper, onnx.TensorProto
    constants = {
        "rows": flat.T.copy(),
        "halves": (0.5 * (flat**2).sum(axis=1)).astype(np.float32),
        "answers": p.astype(np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "rows"], ["dot"]),
        helper.make_node("Sub", ["dot", "halves"], ["near"]),
        helper.make_node("ArgMax", ["near"], ["row"], axis=1, keepdims=0),
        helper.make_node("Gather", ["answers", "row"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("image", kinds.FLOAT, ["n", *PIXELS])],
        [helper.make_tensor_value_info("probabilities", kinds.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with marks on a tenth, its owner's keys, candidates, a thief's model and somebody else's."""
    folder = tmp_path_factory.mktemp("watermark")
    (folder / "model.onnx").write_bytes(mlp().SerializeToString())
    save(folder / "x.npz", x=X)
    assert run("keygen", "-o", str(folder / "owner")).exit_code == 0
    words = ["seal", str(folder / "model.onnx"), "--data", str(folder / "x.npz"), "--key", str(folder / "owner.key")]
    result = run(*words, "-o", str(folder / "bundle"), "--watermark", "0.1", "--output", "probabilities")
    assert result.exit_code == 0, result.output
    bundle = verify(folder / "bundle", [read_public_key(folder / "owner.pub")])
    service = Service(bundle, key=read_secret(folder / "bundle.secret"))
    answers = service.predict({"image": X}).outputs["probabilities"]
    (folder / "thief.onnx").write_bytes(lookup(X, answers).SerializeToString())
    (folder / "other.onnx").write_bytes(mlp(seed=7).SerializeToString())
    return folder


def words(world: Path, *suspects: str, **more: str) -> list[str]:
    named = {"bundle": "bundle", "candidates": "x.npz", "trust": "owner.pub"} | more
    options = [word for name, value in named.items() if value for word in (f"--{name}", str(world / value))]
    return ["watermark", "verify", *(str(world / s) for s in suspects), *options, "--output", "probabilities"]


def verified(world: Path, *suspects: str, **more: str) -> Any:
    return as_json(*words(world, *suspects, **more))


def test_a_thief_is_claimed_and_others_are_not(world: Path) -> None:
    found = verified(world, "thief.onnx", "other.onnx", "bundle")
    assert [claim["claimed"] for claim in found["claims"]] == [True, False, False]
    thief = found["claims"][0]
    assert thief["p_corrected"] < 1e-9
    assert thief["counts"]["named"] == found["candidates"]["marked"]
    assert found["candidates"]["different"] == 600
    assert len(found["key_commitment"]) == 64


def test_a_person_reads_a_table(world: Path) -> None:
    result = run(*words(world, "thief.onnx"))
    assert result.exit_code == 0, result.output
    assert "verdict            trained on our answers: p " in result.stdout
    assert "by chance" in result.stdout
    assert "candidates are marked by 'bundle'" in result.stderr


def test_the_owner_key_will_do_too(world: Path, tmp_path: Path) -> None:
    found = verified(world, "thief.onnx", key="owner.key")
    assert found["claims"][0]["claimed"]
    assert run("keygen", "-o", str(tmp_path / "other")).exit_code == 0
    with_other = words(world, "thief.onnx", key=str(tmp_path / "other.key"))
    assert "not the misinformation key" in fails(KeyFileError, *with_other)
    both = words(world, "thief.onnx", key="owner.key", secret="bundle.secret")
    assert "--secret" in fails(ConfigError, *both)


def test_what_cannot_be_verified_is_told(world: Path, tmp_path: Path) -> None:
    assert "a program that runs" in fails(UnsupportedModelError, *words(world, str(_pickle(tmp_path))))
    assert "named twice" in fails(ConfigError, *words(world, "thief.onnx", "thief.onnx"))
    fails(NoTrustedKeyError, *words(world, "thief.onnx", trust=""))
    assert "one array x" in str(run(*words(world, "thief.onnx", candidates=str(_two(tmp_path)))).exception)


def _pickle(folder: Path) -> Path:
    file = folder / "suspect.pkl"
    file.write_bytes(b"\x80\x04.")
    return file


def _two(folder: Path) -> Path:
    return save(folder / "two.npz", a=X, b=X)
