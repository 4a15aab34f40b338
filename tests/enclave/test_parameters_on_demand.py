"""The service with a parameter memory that is smaller than its model: same answers, in this process and in its own."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.enclave.test_service import ask, probabilities
from tests.models import images, seal_mlp
from tests.runtime.networks import rows_of, seal_named
from tests.runtime.test_loading import loading_threads
from tests.runtime.test_store import Outside

from garrison.enclave.host import Launch, launch
from garrison.enclave.service import Service
from garrison.errors import ConfigError
from garrison.protocol.messages import Ask
from garrison.runtime import loading, runner, segments
from garrison.runtime.loading import cores
from garrison.runtime.segments import WholeError
from garrison.types import DefenseSpec

PLAIN = (DefenseSpec(name="bounds"), DefenseSpec(name="release"))


@pytest.fixture(autouse=True)
def small_models_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LEAST_BYTES", 0)
    monkeypatch.setattr(segments, "PARAMETER_BYTES", 64)


def least_of(sealed_path: Path) -> tuple[int, int]:
    bundle = seal_mlp(sealed_path, PLAIN).verified()
    guarded = bundle.manifest.guarded
    assert guarded is not None
    entry = msgspec.structs.replace(guarded.graph, chunks=bundle.manifest.graph.chunks)
    pieces = runner.pieces_of(bundle, entry, entry.outputs)
    return max(pieces.sizes) + pieces.kept_bytes, sum(c.size for c in bundle.manifest.graph.chunks)


def test_the_service_answers_as_with_all_parameters(tmp_path: Path) -> None:
    bundle = seal_mlp(tmp_path / "b", PLAIN).verified()
    least, size = least_of(tmp_path / "other")
    assert least < size
    service, whole = Service(bundle, parameter_memory=least), Service(bundle)
    assert (service.parameters, whole.parameters) == ("on demand", "resident")
    (reply,), (other,) = service.answer([ask(images(5))]), whole.answer([ask(images(5))])
    np.testing.assert_allclose(probabilities(reply), probabilities(other), atol=1e-5)


def test_a_change_outside_fails_the_request_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = Outside()
    monkeypatch.setattr(runner, "OutsideMemory", lambda: outside)
    bundle = seal_mlp(tmp_path / "b", PLAIN).verified()
    service = Service(bundle, parameter_memory=least_of(tmp_path / "other")[0])
    (good,) = service.answer([ask(images(5))])
    outside.data[17] ^= 4
    (reply,) = service.answer([ask(images(5))])
    assert reply.code == "internal"
    assert "probabilities" not in json.dumps(reply.body.decode())
    outside.data[17] ^= 4
    (again,) = service.answer([ask(images(5))])
    np.testing.assert_array_equal(probabilities(again), probabilities(good))


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Confined as always: what comes on demand needs no file and no further system call."""
    sealed = seal_named("MLP", tmp_path / "b")
    size = sum(chunk.size for chunk in sealed.bundle.manifest.graph.chunks)
    x = rows_of(sealed.shape, 3)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    question = Ask("alice", -1, json.dumps({"inputs": [tensor]}).encode(), -1, "")
    enclave = launch("process", Launch(sealed.path, [sealed.owner.public], parameter_memory=size * 2 // 3))
    try:
        assert enclave.card.parameters == "on demand"
        expected = runner.Runner(sealed.bundle).run({"x": x}).values
        for _ in range(3):
            (reply,) = enclave.call([question])
            np.testing.assert_allclose(probabilities(reply), expected, atol=1e-4)
        process = enclave.process_id  # type: ignore[attr-defined]
        threads = [(task / "status").read_text() for task in Path(f"/proc/{process}/task").iterdir()]
        assert len(threads) == (2 if cores() > 1 else 1)
        assert all("Seccomp:\t2" in status and "NoNewPrivs:\t1" in status for status in threads), "all are confined"
        program = enclave._worker.process  # type: ignore[attr-defined]
    finally:
        enclave.stop()
    assert program.returncode == 0, "it ended by itself, thread and all"


def test_without_an_enclave_the_thread_ends_with_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "cores", lambda: 2)
    sealed = seal_named("MLP", tmp_path / "b")
    size = sum(chunk.size for chunk in sealed.bundle.manifest.graph.chunks)
    before = loading_threads()
    enclave = launch("none", Launch(sealed.path, [sealed.owner.public], parameter_memory=size * 2 // 3))
    assert len(loading_threads() - before) == 1
    enclave.stop()
    assert not loading_threads() - before


def test_too_little_memory_stops_the_start(tmp_path: Path) -> None:
    bundle = seal_mlp(tmp_path / "b", PLAIN).verified()
    with pytest.raises(ConfigError, match="needs at least"):
        Service(bundle, parameter_memory=least_of(tmp_path / "other")[0] - 1)


def test_a_reason_to_run_whole_stands_on_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise WholeError("for a test")

    sealed = seal_mlp(tmp_path / "b", PLAIN)
    monkeypatch.setattr(runner, "cut", never)
    enclave = launch("none", Launch(tmp_path / "b", [sealed.owner.public], parameter_memory=1))
    assert enclave.card.parameters == "whole: for a test"
    enclave.stop()
