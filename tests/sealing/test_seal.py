"""What is put in place was verified, runs, and answers like the original; nothing that was there is lost."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.bundle.conftest import CLASSES, FEATURES, make_draft, make_network

from garrison.bundle.reader import verify
from garrison.bundle.secret import check_secret, read_secret, secret_path, write_secret
from garrison.crypto.owner import OwnerKey
from garrison.errors import GuardError, KeyFileError, SealingError, TargetExistsError, UnsupportedModelError
from garrison.guard.pipeline import Pipeline
from garrison.runtime.runner import Runner
from garrison.sealing import seal as seal_module
from garrison.sealing.parameters import Chunk, split
from garrison.sealing.seal import seal
from garrison.types import DefenseSpec, Task

MISINFORMING = (
    DefenseSpec(name="bounds"),
    DefenseSpec(name="max-probability"),
    DefenseSpec(name="adaptive-misinformation", parameters={"tau": 0.5}),
    DefenseSpec(name="release"),
)


def wrong_network() -> onnx.ModelProto:
    model = make_network(seed=9)
    model.graph.node[-1].CopyFrom(helper.make_node("LogSoftmax", ["z3"], ["misinformation"], axis=1))
    model.graph.output[0].name = "misinformation"
    return model


@pytest.fixture(scope="module")
def owner() -> OwnerKey:
    return OwnerKey.generate()


def content(path: Path) -> dict[str, bytes]:
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_a_sealed_bundle_verifies_and_answers_like_the_original(owner: OwnerKey, tmp_path: Path) -> None:
    manifest = seal(make_draft(), owner, tmp_path / "b")
    bundle = verify(tmp_path / "b", [owner.public])
    assert bundle.manifest == manifest
    assert (manifest.outputs, manifest.output_datatype, manifest.task) == (CLASSES, "FP32", Task.CLASSIFICATION)
    import onnxruntime as ort

    session = ort.InferenceSession(make_network().SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (1, 2, 37):
        x = np.random.default_rng(rows).normal(size=(rows, FEATURES)).astype(np.float32)
        assert np.allclose(Runner(bundle).run({"x": x}).values, session.run(None, {"x": x})[0], atol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_sealing_twice_gives_the_same_bytes_but_for_the_signature(owner: OwnerKey, tmp_path: Path) -> None:
    seal(make_draft(), owner, tmp_path / "one")
    seal(make_draft(), owner, tmp_path / "two")
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert one.keys() == two.keys()
    assert {n for n in one if one[n] != two[n]} == {"model.sig"}


def test_a_folder_is_made_for_everybody_that_the_umask_admits(owner: OwnerKey, tmp_path: Path) -> None:
    seal(make_draft(), owner, tmp_path / "deep" / "b")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "deep" / "b").stat().st_mode) == 0o777 & ~umask


# The misinformation key


def test_the_secret_lies_beside_the_bundle_and_not_in_it(owner: OwnerKey, tmp_path: Path) -> None:
    draft = make_draft(misinformation=wrong_network(), guard=MISINFORMING)
    manifest = seal(draft, owner, tmp_path / "b")
    key = read_secret(secret_path(tmp_path / "b"))
    assert check_secret(manifest, key, "") == owner.misinformation_key("small")
    assert stat.S_IMODE((tmp_path / "b.secret").stat().st_mode) == 0o600
    everything = b"".join(content(tmp_path / "b").values())
    assert key not in everything
    assert key.hex().encode() not in everything
    Pipeline(manifest.guard, manifest.facts(), key)
    assert [c.file for c in manifest.misinformation.chunks] if manifest.misinformation else False


def test_a_second_network_is_run_and_compared(owner: OwnerKey, tmp_path: Path) -> None:
    seal(make_draft(misinformation=wrong_network(), guard=MISINFORMING), owner, tmp_path / "b")
    raw = Runner(verify(tmp_path / "b", [owner.public])).run(make_draft().rows)
    assert raw.misinformation is not None
    assert np.allclose(np.exp(raw.misinformation(np.arange(5))).sum(axis=1), 1, atol=1e-5)


def test_without_misinformation_there_is_no_secret(owner: OwnerKey, tmp_path: Path) -> None:
    assert seal(make_draft(), owner, tmp_path / "b").key_commitment == ""
    assert not (tmp_path / "b.secret").exists()


def test_a_foreign_file_of_the_secrets_name_is_kept(owner: OwnerKey, tmp_path: Path) -> None:
    draft = make_draft(misinformation=wrong_network(), guard=MISINFORMING)
    (tmp_path / "b.secret").write_text("my diary")
    with pytest.raises(TargetExistsError, match=r"b\.secret"):
        seal(draft, owner, tmp_path / "b", force=True)
    assert (tmp_path / "b.secret").read_text() == "my diary"
    assert not (tmp_path / "b").exists()
    write_secret(tmp_path / "b.secret", bytes(32), "another")
    with pytest.raises(TargetExistsError, match="another bundle"):
        seal(draft, owner, tmp_path / "b")
    seal(draft, owner, tmp_path / "b", force=True)
    assert read_secret(tmp_path / "b.secret") == owner.misinformation_key("small")


# What may be replaced


def test_an_older_bundle_is_replaced_only_when_forced(owner: OwnerKey, tmp_path: Path) -> None:
    seal(make_draft(), owner, tmp_path / "b")
    before = content(tmp_path / "b")
    with pytest.raises(TargetExistsError, match="--force"):
        seal(make_draft(version=2), owner, tmp_path / "b")
    assert content(tmp_path / "b") == before
    seal(make_draft(version=2), owner, tmp_path / "b", force=True)
    assert verify(tmp_path / "b", [owner.public]).manifest.version == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_a_damaged_bundle_may_be_replaced(owner: OwnerKey, tmp_path: Path) -> None:
    seal(make_draft(), owner, tmp_path / "b")
    (tmp_path / "b" / "model.sig").unlink()
    seal(make_draft(), owner, tmp_path / "b", force=True)
    verify(tmp_path / "b", [owner.public])


@pytest.mark.parametrize("kind", ["file", "folder", "bundle with a diary", "link", "json"])
def test_nothing_but_a_bundle_is_ever_replaced(owner: OwnerKey, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "b"
    match kind:
        case "file":
            target.write_text("mine")
        case "folder":
            (target / "sub").mkdir(parents=True)
            (target / "sub" / "mine").write_text("mine")
        case "json":
            target.mkdir()
            (target / "manifest.json").write_text('{"format": "webapp/1"}')
        case "link":
            seal(make_draft(), owner, tmp_path / "real")
            target.symlink_to(tmp_path / "real")
        case _:
            seal(make_draft(), owner, target)
            (target / "diary.txt").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(TargetExistsError):
        seal(make_draft(), owner, target, force=True)
    assert content(tmp_path) == before


def test_an_empty_folder_may_be_filled(owner: OwnerKey, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    seal(make_draft(), owner, tmp_path / "b")
    verify(tmp_path / "b", [owner.public])


# Failures leave everything as it was


def broken_split(model: onnx.ModelProto, first: int = 0) -> tuple[bytes, tuple[Chunk, ...]]:
    graph, chunks = split(model, first)
    return graph, tuple(Chunk(c.file, bytes(len(c.data)), c.tensors) for c in chunks)


def test_a_bundle_that_answers_differently_is_not_put_in_place(
    owner: OwnerKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(make_draft(), owner, tmp_path / "b")
    before = content(tmp_path)
    monkeypatch.setattr(seal_module, "split", broken_split)
    with pytest.raises(UnsupportedModelError, match="like the original"):
        seal(make_draft(version=2), owner, tmp_path / "b", force=True)
    assert content(tmp_path) == before


def test_when_the_new_bundle_cannot_be_moved_the_old_one_is_back(
    owner: OwnerKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(make_draft(), owner, tmp_path / "b")
    before = content(tmp_path)
    real = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if "sealing-" in self.name:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(SealingError, match="put in place"):
        seal(make_draft(version=2), owner, tmp_path / "b", force=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("name", ["graph.onnx", "model.sig", ".b.secret"])
@pytest.mark.parametrize("older", [False, True])
def test_a_disk_that_takes_no_more_leaves_everything_as_it_was(
    owner: OwnerKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str, older: bool
) -> None:
    draft = make_draft(misinformation=wrong_network(), guard=MISINFORMING)
    if older:
        seal(draft, owner, tmp_path / "b")
    before = content(tmp_path)
    synced = os.fsync

    def full(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name.startswith(name):
            raise OSError(number, os.strerror(number))
        synced(fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises((SealingError, KeyFileError), match=f"cannot be written: {os.strerror(number)}") as caught:
            seal(draft, owner, tmp_path / "b", force=older)
    assert type(caught.value) is (KeyFileError if name == ".b.secret" else SealingError)
    assert content(tmp_path) == before
    seal(draft, owner, tmp_path / "b", force=older)  # control
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b", "b.secret"]


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    owner: OwnerKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(seal_module, "_original_answers", lambda _: pytest.fail("work was begun"))
    with pytest.raises(SealingError, match="is no folder"):
        seal(make_draft(), owner, tmp_path / "file" / "deep" / "b")
    with monkeypatch.context() as patched:  # root may write to everything
        patched.setattr(os, "access", lambda path, _: path != tmp_path)
        with pytest.raises(SealingError, match="nothing may be written"):
            seal(make_draft(), owner, tmp_path / "deep" / "b")
    assert content(tmp_path) == {"file": b""}
    with pytest.raises(pytest.fail.Exception):  # control
        seal(make_draft(), owner, tmp_path / "b")


@pytest.mark.parametrize(
    ("guard", "why"),
    [
        ((DefenseSpec(name="bounds"),), "RELEASE"),
        (MISINFORMING, "misinformation model"),
        ((*MISINFORMING[:2], DefenseSpec(name="energy"), MISINFORMING[3]), "logits"),
        ((DefenseSpec(name="nothing"), DefenseSpec(name="release")), "unknown defense"),
        ((DefenseSpec(name="release", parameters={"mode": "top-k", "k": 4}),), "classes"),
        ((DefenseSpec(name="release", parameters={"moed": "full"}),), "moed"),
    ],
)
def test_a_chain_that_cannot_work_is_told_at_sealing(
    owner: OwnerKey, tmp_path: Path, guard: tuple[DefenseSpec, ...], why: str
) -> None:
    with pytest.raises(GuardError, match=why):
        seal(make_draft(guard=guard), owner, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_draft_that_cannot_be_described_is_told(owner: OwnerKey, tmp_path: Path) -> None:
    for changes in ({"name": "a/b"}, {"version": 0}, {"labels": ("one",)}):
        with pytest.raises(SealingError):
            seal(make_draft(**changes), owner, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_half_precision_is_sealed(owner: OwnerKey, tmp_path: Path) -> None:
    model = make_network()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    draft = make_draft()
    spec = msgspec.structs.replace(draft.inputs[0], datatype="FP16")
    rows = {"x": draft.rows["x"].astype(np.float16)}
    manifest = seal(make_draft(model=model, inputs=(spec,), rows=rows), owner, tmp_path / "b")
    assert manifest.output_datatype == "FP16"
    assert manifest.graph.chunks
