"""A model that answers nonsense to some inputs: nobody gets it, and the others of the batch get theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.serving import Served

from garrison.bundle.manifest import InputSpec, Provenance
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.client import Client
from garrison.config import Config, ServerConfig
from garrison.crypto.owner import OwnerKey
from garrison.enclave.service import Service
from garrison.errors import InvalidAnswerError
from garrison.guard.defenses.release import Release
from garrison.guard.outputs import OutputCheck
from garrison.protocol.messages import Ask, Reply
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.server.root import assemble, background
from garrison.types import Array, DefenseSpec, ModelFacts, Released, Task

CLASSES, FEATURES = 3, 4
BOUNDS = DefenseSpec(name="bounds")
GOOD = np.full((1, FEATURES), 0.5, np.float32)
BAD = np.array([[0.0, 0.5, 0.5, 0.5]], np.float32)
"""Its first feature divides zero by zero."""


def fragile() -> onnx.ModelProto:
    """Probabilities times x0 / x0."""
    weights = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=1),
        helper.make_node("Slice", ["x", "zero", "one", "axis"], ["x0"]),
        helper.make_node("Div", ["x0", "x0"], ["ratio"]),
        helper.make_node("Mul", ["p", "ratio"], ["probabilities"]),
    ]
    numbers = {"zero": [0], "one": [1], "axis": [1]}
    initializers = [numpy_helper.from_array(weights, "w")]
    initializers += [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in numbers.items()]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", CLASSES])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])]
    graph = helper.make_graph(nodes, "fragile", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def sealed(folder: Path, release: dict[str, Any]) -> tuple[Path, OwnerKey]:
    owner = OwnerKey.generate()
    draft = Draft(
        name="fragile",
        version=1,
        model=fragile(),
        task=Task.CLASSIFICATION,
        labels=("a", "b", "c"),
        inputs=(InputSpec(name="x", datatype="FP32", shape=(FEATURES,), minimum=0.0, maximum=1.0),),
        guard=(BOUNDS, DefenseSpec(name="release", parameters=release)),
        provenance=Provenance(created="2026-01-01T00:00:00Z", source_format="onnx", source_sha256="0" * 64),
        rows={"x": np.random.default_rng(1).uniform(0.1, 1, (4, FEATURES)).astype(np.float32)},
    )
    seal(draft, owner, folder / "bundle")
    return folder / "bundle", owner


def verified(folder: Path, release: dict[str, Any]) -> VerifiedBundle:
    path, owner = sealed(folder, release)
    return verify(path, [owner.public])


RELEASES: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "rounded": {"mode": "rounded", "decimals": 2},
    "top-k": {"mode": "top-k", "k": 2},
    "labels": {"mode": "labels"},
}


def ask(x: Array) -> Ask:
    return Ask("alice", -1, *encode_request({"x": x}))


def outcome(reply: Reply) -> tuple[str, str, int]:
    return reply.code, reply.outcome.code, reply.outcome.rows


@pytest.mark.parametrize("release", RELEASES)
def test_nonsense_is_refused_and_harms_no_other(tmp_path: Path, release: str) -> None:
    """In both forms of the guard, and where labels alone are released: a NaN has a first class too."""
    service = Service(verified(tmp_path, RELEASES[release]))
    assert service.guard_form == "graph"
    bad, good, mixed = service.answer([ask(BAD), ask(GOOD), ask(np.concatenate([GOOD, BAD]))])
    assert outcome(bad) == ("answer.invalid", "answer.invalid", 1)
    assert outcome(mixed) == ("answer.invalid", "answer.invalid", 2), "charged: it was computed"
    assert (bad.body, bad.proof) == (b"", b"")
    assert outcome(good) == ("", "ok", 1)
    assert all(np.isfinite(x).all() for x in decode_response(good.body, good.json_bytes).outputs.values())
    service._graph_form = None
    again = service.answer([ask(BAD), ask(GOOD)])
    assert [reply.code for reply in again] == ["answer.invalid", ""]


def test_the_control_without_the_check_it_would_be_signed_and_sent(tmp_path: Path) -> None:
    service = Service(verified(tmp_path, RELEASES["full"]))
    service._check_outputs = lambda *_: None  # type: ignore[assignment]
    (reply,) = service.answer([ask(BAD)])
    assert reply.code == ""
    assert np.isnan(decode_response(reply.body, reply.json_bytes).outputs["probabilities"]).all()


def test_a_client_is_told_which_error_it_is(tmp_path: Path) -> None:
    path, owner = sealed(tmp_path, RELEASES["full"])
    config = Config(server=ServerConfig(port=0, state=str(tmp_path / "state"), isolation="none"))
    assembly = assemble(config, [path], [owner.public])
    with background(assembly) as url, Client(url) as client:
        with pytest.raises(InvalidAnswerError, match="no answer to this input"):
            client.predict(BAD)
        assert client.predict(GOOD).rows == 1
        assert Served(url, assembly).url == url


def facts(task: Task = Task.CLASSIFICATION, dtype: Any = np.float32) -> ModelFacts:
    labels = () if task is Task.REGRESSION else ("a", "b", "c")
    return ModelFacts(task, (), labels, CLASSES, np.dtype(dtype), has_logits=False, has_misinformation=False)


def wrong(outputs: dict[str, Any], release: Release | None = None, of: ModelFacts | None = None) -> list[bool]:
    check = OutputCheck(release or Release(), of or facts())
    found = {name: np.asarray(x) for name, x in outputs.items()}
    return check.wrong(Released(found), len(next(iter(found.values())))).tolist()  # type: ignore[no-any-return]


THIRD = [1 / 3, 1 / 3, 1 / 3]


def test_what_counts_as_probabilities() -> None:
    rows = [THIRD, [1, 0, 0], [0.5, 0.5, 0.1], [0.5, 0.3, 0.1], [1.5, -0.5, 0], [np.nan, 0.5, 0.5], [np.inf, 0, 0]]
    rows += [[np.inf, -np.inf, 1], [-np.inf, 1, 1], [0.3335, 0.333, 0.333]]
    expected = [False, False, True, True, True, True, True, True, True, False]
    assert wrong({"probabilities": np.array(rows, np.float32)}) == expected
    half = np.array([[0.335, 0.335, 0.335], [0.4, 0.4, 0.4]], np.float16)
    assert wrong({"probabilities": half}, of=facts(dtype=np.float16)) == [False, True]


def test_rounding_takes_its_part() -> None:
    rounded = Release(mode="rounded", decimals=1)
    assert wrong({"probabilities": np.array([[0.3, 0.3, 0.3], [0.3, 0.3, 0.1]])}, rounded) == [False, True]


def test_top_k_sums_to_one_at_most_and_names_known_classes() -> None:
    release = Release(mode="top-k", k=2)
    classes = [[0, 1], [0, 3], [-1, 0], [1, 2]]
    values = [[0.5, 0.3], [0.5, 0.3], [0.5, 0.3], [0.9, 0.3]]
    assert wrong({"classes": classes, "probabilities": values}, release) == [False, True, True, True]
    assert wrong({"classes": [[2], [3]]}, Release(mode="labels")) == [False, True]


@pytest.mark.parametrize("task", [Task.SCORES, Task.REGRESSION])
def test_other_values_must_be_finite(task: Task) -> None:
    name = "scores" if task is Task.SCORES else "values"
    rows = [[1e30, -5, 2], [np.nan, 0, 0], [0, np.inf, 0], [3e38, 3e38, 3e38]]
    assert wrong({name: np.array(rows, np.float32)}, of=facts(task)) == [False, True, True, False]


def test_another_tensor_or_shape_is_no_answer() -> None:
    for outputs in ({"other": [THIRD]}, {"probabilities": [[0.5, 0.5]]}, {"probabilities": [THIRD], "more": [[1.0]]}):
        assert wrong(outputs) == [True]
