"""The three models that are served, with random weights: speed does not depend on what they have learned.

Each is made twice: as it is given to the peers and to the unguarded server (one output, the probabilities), and with what the guard needs (logits
and a misinformation head). Both are sealed; the first behind a chain that holds nothing but the release of the full answer.

The guard's threshold is put where one input in `MISINFORMED` of the load gets misinformation, as about one in a hundred of honest ones does with
a trained model. With random weights no fixed threshold means anything: at 0.3 it would be half of all inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from benchmarks.serve_lenet import lenet
from onnx import TensorProto, helper, numpy_helper

from garrison import datasets
from garrison.bundle.manifest import InputSpec, Provenance
from garrison.crypto.owner import OwnerKey
from garrison.errors import DatasetError
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.types import Array, DefenseSpec, Task

OUTPUTS = ("probabilities", "logits", "misinformation")
NEVER_REACHED = 10**12
MISINFORMED = 64
SOFT = 0.014
"""So far above the threshold a row still gets some misinformation: ln(10^6) / nu, with the usual nu of 1000."""
UNGUARDED = (DefenseSpec(name="release"),)


class Graph:
    """Writes an ONNX graph node by node; weights are drawn as they are needed."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        out = name or f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def weight(self, *shape: int, scale: float) -> str:
        name = f"w{len(self._weights)}"
        values = (self._rng.normal(size=shape) * scale).astype(np.float32)
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def gemm(self, x: str, width: int, out: int, name: str = "") -> str:
        return self.node(
            "Gemm", x, self.weight(width, out, scale=(2 / width) ** 0.5), self.weight(out, scale=0), name=name
        )

    def convolution(self, x: str, channels: int, out: int, kernel: int, stride: int) -> str:
        """With padding that keeps the size; a batch normalisation would be folded into it."""
        w = self.weight(out, channels, kernel, kernel, scale=(2 / (channels * kernel**2)) ** 0.5)
        pads = [kernel // 2] * 4
        return self.node("Conv", x, w, self.weight(out, scale=0), strides=[stride, stride], pads=pads)

    def finish(self, features: str, width: int, shape: tuple[int, ...], classes: int) -> onnx.ModelProto:
        """The three heads on the last features."""
        self.node("Softmax", self.gemm(features, width, classes, "logits"), name="probabilities", axis=1)
        self.node("LogSoftmax", self.gemm(features, width, classes), name="misinformation", axis=1)
        graph = helper.make_graph(
            self._nodes,
            "bench",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", classes]) for name in OUTPUTS],
            self._weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def mlp() -> onnx.ModelProto:
    """64 features, two hidden layers of 256, 10 classes."""
    graph = Graph()
    h = graph.node("Relu", graph.gemm("x", 64, 256))
    return graph.finish(graph.node("Relu", graph.gemm(h, 256, 256)), 256, (64,), 10)


def resnet18() -> onnx.ModelProto:
    """He et al., "Deep Residual Learning" (CVPR 2016), table 1, 18 layers; batch normalisation folded into the convolutions."""
    graph = Graph()
    x = graph.node("Relu", graph.convolution("x", 3, 64, 7, 2))
    x, channels = graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 64
    for width, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for stride in (first, 1):
            y = graph.node("Relu", graph.convolution(x, channels, width, 3, stride))
            y = graph.convolution(y, width, width, 3, 1)
            if stride != 1 or channels != width:
                x = graph.convolution(x, channels, width, 1, stride)
            x, channels = graph.node("Relu", graph.node("Add", x, y)), width
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    return graph.finish(x, 512, (3, 224, 224), 1000)


@dataclass(frozen=True, slots=True)
class Model:
    """One of the models: how it is made, one row's shape, how many different inputs are sent."""

    name: str
    title: str
    make: Callable[[], onnx.ModelProto]
    shape: tuple[int, ...]
    classes: int
    pool: int = 64

    def rows(self) -> Array:
        """Honest inputs, (pool, 1, *shape) float32 in [0, 1]."""
        if self.name == "lenet":
            try:
                return np.ascontiguousarray(datasets.load("fashion-mnist", "test").x[: self.pool]).reshape(
                    self.pool, 1, *self.shape
                )
            except DatasetError:
                pass
        return np.random.default_rng(0).random((self.pool, 1, *self.shape), dtype=np.float32)


MODELS = {
    m.name: m
    for m in (
        Model("lenet", "LeNet size", lenet, (1, 28, 28), 10),
        Model("mlp", "MLP", mlp, (64,), 10),
        Model("resnet18", "ResNet-18 size", resnet18, (3, 224, 224), 1000, pool=8),
    )
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model's files."""

    model: Model
    plain: Path
    unguarded: Path
    guarded: Path
    trust: Path


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without what only the guard needs."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    wanted, nodes = {"probabilities"}, []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            nodes.append(node)
    keep = [node.SerializeToString() for node in reversed(nodes)]
    weights = [w.SerializeToString() for w in graph.initializer if w.name in wanted]
    outputs = [o.SerializeToString() for o in graph.output if o.name == "probabilities"]
    for field, kept, kind in (
        (graph.node, keep, onnx.NodeProto),
        (graph.initializer, weights, onnx.TensorProto),
        (graph.output, outputs, onnx.ValueInfoProto),
    ):
        del field[:]
        field.extend(kind.FromString(data) for data in kept)
    return found


def guard(tau: float) -> tuple[DefenseSpec, ...]:
    """The usual chain, with a budget that is never reached."""
    return (
        DefenseSpec(name="bounds"),
        DefenseSpec(name="budget", parameters={"rows": NEVER_REACHED}),
        DefenseSpec(name="max-probability"),
        DefenseSpec(name="adaptive-misinformation", parameters={"tau": tau}),
        DefenseSpec(name="release"),
    )


def threshold(model: onnx.ModelProto, rows: Array) -> float:
    """Where one row in `MISINFORMED` lies below: half way to the next."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    confidence = sorted(float(session.run(["probabilities"], {"x": x})[0].max()) for x in rows)
    below = len(confidence) // MISINFORMED
    return max(0.0, (confidence[below - 1] + confidence[below]) / 2 - SOFT) if below else 0.0


def prepare(model: Model, folder: Path) -> Prepared:
    """Make and seal what is served. An older folder is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Prepared(model, folder / "plain.onnx", folder / "unguarded", folder / "guarded", folder / "owner.pub")
    whole = model.make()
    bare = plain(whole)
    found.plain.write_bytes(bare.SerializeToString())
    owner = OwnerKey.generate()
    found.trust.write_bytes(owner.public.pem)
    chain = guard(threshold(whole, model.rows()))
    for path, graph, defenses in ((found.unguarded, bare, UNGUARDED), (found.guarded, whole, chain)):
        path.with_name(f"{path.name}.secret").unlink(missing_ok=True)
        seal(draft_of(model, graph, defenses), owner, path, force=True)
    return found


def draft_of(model: Model, graph: onnx.ModelProto, guard: tuple[DefenseSpec, ...]) -> Draft:
    """What is sealed."""
    return Draft(
        name=model.name,
        version=1,
        model=graph,
        task=Task.CLASSIFICATION,
        labels=tuple(map(str, range(model.classes))),
        inputs=(InputSpec(name="x", datatype="FP32", shape=model.shape, minimum=0.0, maximum=1.0),),
        guard=guard,
        provenance=Provenance(created="2026-01-01T00:00:00Z", source_format="onnx", source_sha256="0" * 64),
        rows={"x": model.rows()[:2, 0]},
    )
