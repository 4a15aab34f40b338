"""The traced guard against the numpy form, over the whole registry and on every edge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.guard.test_contract import CASES, ids
from tests.models import BOUNDS, CLASSES, PIXELS, RELEASE, SCORE, Sealed, images, misinform, mlp, seal_mlp

from garrison.bundle.manifest import InputSpec, Provenance
from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerKey
from garrison.enclave.service import Service
from garrison.errors import InputError
from garrison.guard import marks
from garrison.guard.base import ReleaseDefense
from garrison.guard.graph_form import GraphForm, settings_of
from garrison.guard.numpy_form import NumpyForm
from garrison.guard.pipeline import Pipeline, Progress, load_defense
from garrison.runtime.runner import Runner
from garrison.sealing import guarded
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.sealing.tracing import trace
from garrison.types import Array, Batch, Caller, DefenseSpec, Released, Task

TOLERANCE = 1e-5
"""Stated in docs/architecture.md: absolute, and relative to the value."""


def chain_around(spec: DefenseSpec, *, bounds: bool = True) -> tuple[DefenseSpec, ...]:
    """A chain that holds the defense and what it needs."""
    if "codes" in spec.parameters:  # one code a class, of this model's classes
        spec = DefenseSpec(
            name=spec.name, parameters=spec.parameters | {"codes": (0.6 * np.eye(CLASSES) + 0.08).tolist()}
        )
    if spec.name == "drift":  # its columns are those of this model's rows
        spec = DefenseSpec(name=spec.name, parameters=spec.parameters | {"columns": columns_of_this_model()})
    defense = load_defense(spec)
    chain = [BOUNDS] if bounds and spec.name != "bounds" else []
    if "confidence" in defense.needs or defense.shares:
        chain.append(SCORE)
    if "projection" in defense.needs or defense.shares:
        chain.append(DefenseSpec(name="projection"))
    if defense.shares:
        chain.append(DefenseSpec(name=defense.shares, parameters={"detectors": {}}))
    others = [spec] if isinstance(defense, ReleaseDefense) else [RELEASE, spec]
    return tuple(sorted([*chain, *others], key=lambda s: load_defense(s).phase))


def columns_of_this_model() -> list[dict[str, Any]]:
    asked = [f"image[{k}]" for k in range(int(np.prod(PIXELS)))]
    same = {"edges": [0.2, 0.5, 0.8], "shares": [0.25, 0.25, 0.25, 0.25, 0.0]}
    return [
        {"name": name, "answer": k >= len(asked), **same}
        for k, name in enumerate([*asked, "predicted class", "largest probability"])
    ]


def batch_of(x: Array, rows: tuple[int, ...] | None = None, remaining: int = -1) -> Batch:
    counts = rows or (1,) * len(x)
    callers = tuple(Caller(f"caller {i}") for i in range(len(counts)))
    owners = np.repeat(np.arange(len(counts), dtype=np.intp), counts)
    return Batch({"image": x}, owners, callers, (remaining,) * len(counts))


class Forms:
    """Both forms of one sealed bundle."""

    def __init__(self, sealed: Sealed) -> None:
        bundle = sealed.verified()
        assert bundle.manifest.guarded is not None, bundle.manifest.numpy_because
        pipeline = Pipeline(bundle.manifest.guard, bundle.manifest.facts(), sealed.key)
        self.graph = GraphForm(pipeline, Runner(bundle, settings=settings_of(pipeline)))
        self.numpy = NumpyForm(pipeline, Runner(bundle).run)

    def agree(self, batch: Batch) -> tuple[Progress, Released]:
        found, wanted = self.graph(batch), self.numpy(batch)
        assert found is not None
        (progress, said), (expected, known) = found, wanted
        assert progress.refused == expected.refused
        assert progress.detail == expected.detail
        kept = np.array([code is None for code in expected.refused])[batch.request_of_row]
        if not kept.any():
            return progress, said
        np.testing.assert_array_equal(progress.replaced[kept], expected.replaced[kept])
        np.testing.assert_array_equal(said.uncertain[kept], expected.uncertain[kept])
        assert {n: c.tolist() for n, c in progress.shadow.items()} == {
            n: c.tolist() for n, c in expected.shadow.items()
        }
        # Of a batch some of whose requests are refused, the numpy form keeps no signal of what comes after the model.
        assert progress.signals.keys() - {"confidence"} <= expected.signals.keys()
        for name in progress.signals.keys() & expected.signals.keys():
            signal = progress.signals[name]
            np.testing.assert_allclose(signal[kept], expected.signals[name][: len(signal)][kept], rtol=1e-4, atol=1e-4)
        for name, value in known.outputs.items():
            assert said.outputs[name].dtype == value.dtype
            np.testing.assert_allclose(said.outputs[name][kept], value[kept], rtol=TOLERANCE, atol=TOLERANCE)
        return progress, said


def _first(name: str, parameters: dict[str, Any]) -> bool:
    return next(given for known, given in CASES if known == name) is parameters


MARKED = [
    pytest.param(case, id=label, marks=() if _first(*case) else pytest.mark.slow)
    for case, label in zip(CASES, ids, strict=True)
    if case[0] != "randomized-smoothing"  # runs the model again, in numpy alone
]
"""The first example of each defense is quick enough for every run."""


@pytest.fixture(scope="module", params=MARKED)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Forms:
    name, parameters = request.param
    chain = chain_around(DefenseSpec(name=name, parameters=parameters))
    return Forms(seal_mlp(tmp_path_factory.mktemp("case") / "bundle", chain))


class TestEveryDefense:
    @pytest.mark.parametrize("rows", [1, 2, 37])
    def test_answers_as_in_numpy(self, case: Forms, rows: int) -> None:
        case.agree(batch_of(images(rows, seed=rows)))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5, -0.1])
    def test_refuses_one_bad_value_at_every_position(self, case: Forms, value: float) -> None:
        features = int(np.prod(PIXELS))
        x = images(2 * features)
        x.reshape(len(x), -1)[np.arange(features) * 2, np.arange(features)] = value
        progress, _ = case.agree(batch_of(x))
        assert [code is not None for code in progress.refused[::2]] == [True] * features
        assert "request.input" not in progress.refused[1::2]  # the good row beside each bad one is judged for itself

    def test_refuses_the_whole_request_and_no_other(self, case: Forms) -> None:
        x = images(9)
        x[4, 0, 0, 0] = np.nan
        progress, _ = case.agree(batch_of(x, (3, 3, 3)))
        assert progress.refused[1] == "request.input"

    def test_ties_and_equal_rows(self, case: Forms) -> None:
        case.agree(batch_of(np.zeros((5, *PIXELS), np.float32)))


@pytest.mark.parametrize("given", MARKED)
def test_a_value_that_nobody_checks(given: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """Without bounds NaN reaches the model in both forms, and whatever comes out of that is treated alike."""
    name, parameters = given
    if name == "bounds":
        pytest.skip("the chain without bounds")
    forms = Forms(
        seal_mlp(tmp_path / "bundle", chain_around(DefenseSpec(name=name, parameters=parameters), bounds=False))
    )
    x = images(6)
    x[2, 0, 3, 3], x[4, 0, 0, 1] = np.nan, np.inf
    forms.agree(batch_of(x))


@pytest.mark.parametrize("name", ["bounds", "max-probability", "adaptive-misinformation", "reject-option"])
def test_shadow_counts_alike(name: str, tmp_path: Path) -> None:
    parameters = {"tau": 0.9} if name in {"adaptive-misinformation", "reject-option"} else {}
    spec = DefenseSpec(name=name, parameters=parameters, shadow=True)
    forms = Forms(seal_mlp(tmp_path / "bundle", chain_around(spec, bounds=False)))
    x = images(12)
    x[5] += 3
    progress, _ = forms.agree(batch_of(x, (4, 4, 4)))
    counted = progress.shadow[name].sum()
    assert counted > 0 if name != "max-probability" else counted == 0


def test_shadow_after_a_refusal_counts_only_who_came_so_far(tmp_path: Path) -> None:
    shadow = DefenseSpec(name="reject-option", parameters={"tau": 2.0}, shadow=True)
    forms = Forms(seal_mlp(tmp_path / "bundle", (BOUNDS, SCORE, shadow, RELEASE)))
    x = images(4)
    x[1] += 3
    progress, _ = forms.agree(batch_of(x, (2, 2)))
    assert progress.shadow["reject-option"].tolist() == [0, 2]


def test_a_network_of_its_own_for_misinformation(tmp_path: Path) -> None:
    forms = Forms(seal_mlp(tmp_path / "bundle", (BOUNDS, SCORE, misinform(0.6), RELEASE), own_network=True))
    progress, _ = forms.agree(batch_of(images(37)))
    assert 0 < np.count_nonzero(progress.replaced) < 37


def test_two_defenses_that_replace(tmp_path: Path) -> None:
    reject = DefenseSpec(name="reject-option", parameters={"tau": 0.5})
    forms = Forms(seal_mlp(tmp_path / "bundle", (BOUNDS, SCORE, misinform(0.7), reject, RELEASE)))
    _, released = forms.agree(batch_of(images(64)))
    assert released.uncertain.any()


def test_what_misinformation_made_is_bent_too(tmp_path: Path) -> None:
    """Few rows and many take different roads; the second defense reads a signal of several numbers."""
    second = DefenseSpec(name="prediction-poisoning", parameters={"seed": 5})
    chain = (BOUNDS, DefenseSpec(name="projection"), SCORE, misinform(0.9), second, RELEASE)
    forms = Forms(seal_mlp(tmp_path / "bundle", chain))
    for rows in (6, 64):
        progress, released = forms.agree(batch_of(images(rows)))
        assert progress.replaced.all()
        best = np.sort(released.outputs["probabilities"], axis=1)
        assert np.median(best[:, -1] - best[:, -2]) < 0.02


def test_who_has_nothing_left_is_taken_out_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed for such a caller, and the others' answers are still made by the graph."""
    budget = DefenseSpec(name="budget", parameters={"rows": 10})
    shadow = DefenseSpec(name="reject-option", parameters={"tau": 2.0}, shadow=True)
    forms = Forms(seal_mlp(tmp_path / "bundle", (BOUNDS, budget, SCORE, misinform(0.6), shadow, RELEASE)))
    reached: list[int] = []
    guarded = Runner.guarded

    def counting(self: Runner, inputs: dict[str, Array]) -> dict[str, Array]:
        reached.append(len(inputs["image"]))
        return guarded(self, inputs)

    monkeypatch.setattr(Runner, "guarded", counting)
    x = images(37, seed=2)
    x[3, 0, 1, 1] = np.nan  # and of these one is out of bounds too, which is told first
    batch = batch_of(x, (2, 5, 30))
    for left, refused in (((-1, 1, -1), 1), ((1, 1, 1), 3), ((1, -1, -1), 2), ((-1, -1, -1), 1)):
        progress, _ = forms.agree(Batch(batch.inputs, batch.request_of_row, batch.callers, left))
        assert sum(code is not None for code in progress.refused) == refused
        assert progress.refused[1] == "request.input"
    assert reached == [32, 35, 37], "control: with nobody refused before the graph all rows reach it"
    assert all(forms.agree(batch_of(images(3), remaining=0))[0].refused)


def test_ties_are_broken_by_the_lower_class(tmp_path: Path) -> None:
    chain = (DefenseSpec(name="release", parameters={"mode": "top-k", "k": 3}),)
    facts = seal_mlp(tmp_path / "bundle", chain).verified().manifest.facts()
    session = ort.InferenceSession(trace(chain, facts).after.SerializeToString())
    values = np.array(
        [[0.25, 0.25, 0.0, 0.25, 0.25], [0.1, 0.3, 0.3, 0.3, 0.0], [np.nan, 0.5, 0.2, 0.3, np.nan]], np.float32
    )
    (classes,) = session.run(["released.classes"], {"probabilities": values})
    assert classes.tolist() == [[0, 1, 3], [1, 2, 3], [1, 3, 2]]


def test_a_chain_that_marks_nothing_says_so_by_the_number_of_rows_alone(tmp_path: Path) -> None:
    facts = seal_mlp(tmp_path / "bundle").verified().manifest.facts()
    graphs = trace((RELEASE,), facts)
    for graph, output in ((graphs.before, marks.ADMIT), (graphs.after, marks.MARKS)):
        read = {name for node in graph.graph.node if node.op_type != "Shape" for name in node.input}
        onto = {node.output[0] for node in graph.graph.node if node.op_type == "Shape"}
        (zeros,) = (node for node in graph.graph.node if node.op_type == "ConstantOfShape")
        assert zeros.input[0] in onto
        assert zeros.output[0] in {output, *read}
    (plain,) = facts.inputs
    session = ort.InferenceSession(graphs.before.SerializeToString())
    for rows in (1, 2, 37):
        asked = {node.name: np.full((rows, *plain.shape), np.nan, np.float32) for node in session.get_inputs()}
        (found,) = session.run([marks.ADMIT], asked)
        assert found.dtype == np.int32
        assert found.tolist() == [0] * rows


def test_a_host_may_raise_tau_and_keep_the_graph(tmp_path: Path) -> None:
    sealed = seal_mlp(tmp_path / "bundle")
    signed = Service(sealed.verified(), key=sealed.key)
    raised = Service(sealed.verified(), key=sealed.key, tightened={"adaptive-misinformation": {"tau": 0.999}})
    coarser = Service(sealed.verified(), key=sealed.key, tightened={"release": {"mode": "labels"}})
    assert signed.guard_form == raised.guard_form == "graph"
    assert coarser.guard_form.startswith("numpy: the chain that runs is not")
    answers = [service.predict({"image": images(64)}).outputs for service in (signed, raised)]
    moved = np.abs(answers[0]["probabilities"] - answers[1]["probabilities"]).max(axis=1) > 1e-6
    assert 0 < np.count_nonzero(moved) < 64


@pytest.mark.parametrize("version", [13, 21, 22, 24])
def test_models_older_and_newer_than_the_guards_operators_get_one_graph(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traced guard has the operator set 21, and converters' own choice goes up with each of their releases."""

    def of_that_version(*given: Any, **more: Any) -> onnx.ModelProto:
        model = mlp(*given, **more)
        model.opset_import[0].version = version
        return model

    monkeypatch.setattr("tests.models.mlp", of_that_version)
    forms = Forms(seal_mlp(tmp_path / "bundle"))
    forms.agree(batch_of(images(37)))
    bad = images(4)
    bad[1, 0, 3, 3], bad[2, 0, 7, 7] = np.nan, 2.0
    progress, _ = forms.agree(batch_of(bad))
    assert [code is not None for code in progress.refused] == [False, True, True, False]


def test_a_guard_that_answers_otherwise_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control arm of everything above: a graph without the check of the range is seen, and numpy runs."""
    with monkeypatch.context() as patched:
        patched.setattr(
            guarded, "trace", lambda chain, facts: trace(tuple(s for s in chain if s.name != "bounds"), facts)
        )
        manifest = seal_mlp(tmp_path / "bundle").verified().manifest
    assert manifest.guarded is None
    assert "refuses other requests" in manifest.numpy_because
    assert not (tmp_path / "bundle" / "guarded.onnx").exists()
    honest = seal_mlp(tmp_path / "honest").verified().manifest
    assert honest.guarded is not None
    assert not honest.numpy_because


def lookup(rows_of_table: int = 7) -> onnx.ModelProto:
    """A model whose runtime fails on what is out of range: whole numbers (n, 3) -> a row of a table."""
    rng = np.random.default_rng(0)
    table = numpy_helper.from_array(rng.random((rows_of_table, CLASSES)).astype(np.float32), "table")
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [
        helper.make_node("Gather", ["table", "words"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axes"], ["sum"], keepdims=0),
        helper.make_node("Softmax", ["sum"], ["probabilities"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("words", TensorProto.INT64, ["n", 3])]
    outputs = [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", CLASSES])]
    graph = helper.make_graph(nodes, "lookup", inputs, outputs, [table, axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_is_refused_never_reaches_the_model(tmp_path: Path) -> None:
    owner = OwnerKey.generate()
    draft = Draft(
        name="lookup",
        version=1,
        model=lookup(),
        task=Task.CLASSIFICATION,
        labels=(),
        inputs=(InputSpec(name="words", datatype="INT64", shape=(3,), minimum=0, maximum=6),),
        guard=(BOUNDS, RELEASE),
        provenance=Provenance(created="2026-01-01T00:00:00Z", source_format="onnx", source_sha256="0" * 64),
        rows={"words": np.array([[0, 1, 2], [6, 5, 4]])},
    )
    seal(draft, owner, tmp_path / "bundle")
    bundle = verify(tmp_path / "bundle", [owner.public])
    service = Service(bundle)
    assert service.guard_form == "graph"
    words = np.array([[0, 1, 2], [0, 99, 2]])
    with pytest.raises(Exception, match=r"(?i)gather|indices"):  # control: the bare model fails on it
        Runner(bundle).run({"words": words})
    pipeline = Pipeline(bundle.manifest.guard, bundle.manifest.facts())
    done = GraphForm(pipeline, Runner(bundle, settings={}))(
        Batch({"words": words}, np.arange(2), (Caller("a"), Caller("b")), (-1, -1))
    )
    assert done is not None
    assert done[0].refused == [None, "request.input"]
    with pytest.raises(InputError):
        service.predict({"words": words[1:]})
