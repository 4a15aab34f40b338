"""Small real models and sealed bundles for tests: made in milliseconds, with onnx alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from garrison.bundle.manifest import InputSpec, Provenance
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.crypto.owner import OwnerKey
from garrison.guard.defenses.feature_squeezing import FeatureSqueezing
from garrison.guard.pipeline import load_defense
from garrison.hardening.data import Part
from garrison.hardening.feature_scores import add_feature_score
from garrison.sealing.copies import with_copies
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.types import FEATURE_SCORES, Array, DefenseSpec, Task

PIXELS, HIDDEN, CLASSES = (1, 8, 8), 32, 5
LABELS = tuple(f"kind {k}" for k in range(CLASSES))
RELEASE = DefenseSpec(name="release")
BOUNDS = DefenseSpec(name="bounds")
SCORE = DefenseSpec(name="max-probability")


def misinform(tau: float, **more: Any) -> DefenseSpec:
    return DefenseSpec(name="adaptive-misinformation", parameters={"tau": tau, **more})


def mlp(seed: int = 0, *, head: bool = True, sharpness: float = 3.0) -> onnx.ModelProto:
    """images (n, 1, 8, 8) -> probabilities, logits and, with `head`, log f'."""
    rng = np.random.default_rng(seed)
    features = int(np.prod(PIXELS))

    def weight(name: str, *shape: int, scale: float = 1.0) -> onnx.TensorProto:
        return numpy_helper.from_array((scale * rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32), name)

    initializers = [
        weight("w1", features, HIDDEN, scale=4.0),
        weight("b1", HIDDEN),
        weight("w2", HIDDEN, CLASSES, scale=sharpness),
        weight("b2", CLASSES),
        weight("w3", HIDDEN, CLASSES),
    ]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    names = ["probabilities", "logits"]
    if head:
        nodes += [
            helper.make_node("MatMul", ["r", "w3"], ["z"]),
            helper.make_node("LogSoftmax", ["z"], ["misinformation"], axis=1),
        ]
        names.append("misinformation")
    else:
        initializers.pop()
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", CLASSES]) for n in names]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *PIXELS])]
    graph = helper.make_graph(nodes, "mlp", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def wrong_network(seed: int = 9) -> onnx.ModelProto:
    """A network of its own for f'."""
    rng = np.random.default_rng(seed)
    w = numpy_helper.from_array(rng.normal(size=(int(np.prod(PIXELS)), CLASSES)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z"]),
        helper.make_node("LogSoftmax", ["z"], ["misinformation"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *PIXELS])]
    outputs = [helper.make_tensor_value_info("misinformation", TensorProto.FLOAT, ["n", CLASSES])]
    return helper.make_model(
        helper.make_graph(nodes, "wrong", inputs, outputs, [w]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def images(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((rows, *PIXELS), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed bundle, its owner and its original model."""

    path: Path
    owner: OwnerKey
    model: onnx.ModelProto
    key: bytes

    def verified(self) -> VerifiedBundle:
        return verify(self.path, [self.owner.public])


def seal_mlp(
    out: Path,
    chain: tuple[DefenseSpec, ...] = (BOUNDS, SCORE, misinform(0.6), RELEASE),
    *,
    own_network: bool = False,
    name: str = "mlp",
    version: int = 1,
    owner: OwnerKey | None = None,
    seed: int = 0,
    require_sealed: bool = False,
) -> Sealed:
    key, model = owner or OwnerKey.generate(), mlp(seed, head=not own_network)
    for spec in chain:
        if spec.name in FEATURE_SCORES:
            model = add_feature_score(model, spec.name, Part({"image": images(200, seed=1)}, None))
    pictures = InputSpec(name="image", datatype="FP32", shape=PIXELS, minimum=0.0, maximum=1.0)
    for defense in map(load_defense, chain):
        if isinstance(defense, FeatureSqueezing):
            model = with_copies(model, pictures, defense, "probabilities", {"image": images(4)})
    draft = Draft(
        name=name,
        version=version,
        model=model,
        misinformation=wrong_network() if own_network else None,
        task=Task.CLASSIFICATION,
        labels=LABELS,
        inputs=(pictures,),
        guard=chain,
        provenance=Provenance(created="2026-01-01T00:00:00Z", source_format="onnx", source_sha256="0" * 64),
        rows={"image": images(4)},
        require_sealed=require_sealed,
    )
    seal(draft, key, out)
    return Sealed(out, key, model, key.misinformation_key(name))
