"""Writes our own networks as ONNX graphs, layer by layer, and proves each against torch before it is handed on.

The graphs use opset 17, have a free batch dimension and no external data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from garrison.bundle.manifest import InputSpec
from garrison.errors import MissingExtraError, SealingError
from garrison.hardening.ensemble import Answering, Ensemble
from garrison.hardening.networks import Network, Standardise
from garrison.hardening.scoring import open_session, score
from garrison.hardening.training import apply
from garrison.types import NUMPY_DTYPES, Array

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

OPSET = 17
IR_VERSION = 8
TOLERANCE = 1e-5
"""Largest difference between the exported graph's probabilities and torch's."""


def victim_graph(
    network: Network, second_head: nn.Linear | None, sample: npt.NDArray[np.float32], name: str = "image"
) -> bytes:
    """A victim with outputs `probabilities`, `logits` and, with a second head, `misinformation`.

    Args:
        network: see `garrison.hardening.networks`.
        second_head: on the penultimate features, from `train_head`.
        sample: (rows, ...), a few rows to compare on; they also give the shape of a row.
        name: of the input.

    Raises:
        SealingError: the graph and torch disagree by more than 1e-5.
    """
    graph = _Graph()
    features = graph.through(network.body, name)
    graph.through(network.answer, features, "logits")
    graph.add("Softmax", ["logits"], "probabilities", axis=1)
    outputs = ["probabilities", "logits"]
    expected = {"probabilities": torch.softmax(apply(network, sample), dim=1)}
    if second_head is not None:
        graph.add("LogSoftmax", [graph.through(second_head, features)], "misinformation", axis=1)
        outputs.append("misinformation")
        wrong = apply(nn.Sequential(network.body, second_head), sample)
        expected["misinformation"] = torch.log_softmax(wrong, dim=1)
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", *sample.shape[1:]])]
    data = graph.finish(inputs, outputs, network.answer.out_features)
    _compare(data, {name: sample}, expected)
    return data


def ensemble_graph(ensemble: Ensemble, sample: npt.NDArray[np.float32], name: str = "image") -> bytes:
    """A hashed ensemble with outputs `probabilities` and `logits`: all heads are computed, and each row's answer is that of the one picked.

    Args:
        ensemble: see `garrison.hardening.ensemble`.
        sample, name: see `victim_graph`.

    Raises:
        SealingError: the graph and torch disagree by more than 1e-5.
    """
    graph, picker = _Graph(), ensemble.hash
    features = graph.through(ensemble.trunk, name)
    planes = [graph.constant(torch.as_tensor(value)) for value in (picker.matrix, picker.offset)]
    cells = graph.add("Floor", [graph.add("Gemm", [graph.add("Flatten", [name], axis=1), *planes])])
    total = graph.add("MatMul", [cells, graph.constant(torch.as_tensor(picker.weights[:, np.newaxis]))])
    members = graph.constant(torch.tensor([float(picker.members)]))
    whole = graph.add("Mul", [graph.add("Floor", [graph.add("Div", [total, members])]), members])
    picked = graph.add("Sub", [total, whole])
    answer = ""
    for number, member in enumerate(ensemble.heads):
        own = graph.through(member, features)
        chosen = graph.add("Equal", [picked, graph.constant(torch.tensor([float(number)]))])
        last = "logits" if number == picker.members - 1 else ""
        answer = graph.add("Where", [chosen, own, answer], last) if answer else own
    graph.add("Softmax", ["logits"], "probabilities", axis=1)
    outputs = ["probabilities", "logits"]
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", *sample.shape[1:]])]
    logits = apply(Answering(ensemble), sample)
    data = graph.finish(inputs, outputs, logits.shape[1])
    _compare(data, {name: sample}, {"probabilities": torch.softmax(logits, dim=1)})
    return data


def misinformation_graph(network: Network, inputs: tuple[InputSpec, ...], sample: Mapping[str, Array]) -> bytes:
    """An f' of its own with the one output `misinformation`; takes exactly the victim's inputs.

    Args:
        network: trained on `joined(sample)`.
        inputs: the victim's.
        sample: a few rows by input name.

    Raises:
        SealingError: the graph and torch disagree by more than 1e-5.
    """
    graph = _Graph()
    parts = [graph.add("Cast", [i.name], to=onnx.TensorProto.FLOAT) for i in inputs]
    if len(inputs) > 1 or not inputs[0].shape:
        parts = [graph.add("Flatten", [part], axis=1) for part in parts]
    x = parts[0] if len(parts) == 1 else graph.add("Concat", parts, axis=1)
    graph.add("LogSoftmax", [graph.through(network.answer, graph.through(network.body, x))], "misinformation", axis=1)
    kinds = {i.name: helper.np_dtype_to_tensor_dtype(NUMPY_DTYPES[i.datatype]) for i in inputs}
    infos = [helper.make_tensor_value_info(i.name, kinds[i.name], ["rows", *i.shape]) for i in inputs]
    data = graph.finish(infos, ["misinformation"], network.answer.out_features)
    wrong = apply(network, joined({i.name: sample[i.name] for i in inputs}))
    _compare(data, {i.name: sample[i.name] for i in inputs}, {"misinformation": torch.log_softmax(wrong, dim=1)})
    return data


def joined(inputs: Mapping[str, Array]) -> npt.NDArray[np.float32]:
    """All inputs of a row as one float32 array: a single input keeps its shape, several are laid end to end."""
    only = next(iter(inputs.values()))
    if len(inputs) == 1 and only.ndim > 1:
        return np.ascontiguousarray(only, dtype=np.float32)
    return np.concatenate([x.reshape(len(x), -1).astype(np.float32) for x in inputs.values()], axis=1)


def _compare(data: bytes, inputs: dict[str, Array], expected: dict[str, torch.Tensor]) -> None:
    found = score(open_session(data), inputs, list(expected))
    for name, value in expected.items():
        kind = np.exp if name == "misinformation" else np.asarray
        difference = float(np.abs(kind(found[name]) - kind(value.numpy())).max())
        if not difference <= TOLERANCE:
            raise SealingError(f"the exported graph and torch disagree on {name} by {difference:.2g}")


@dataclass(slots=True)
class _Graph:
    """Nodes and initializers in the order they are made."""

    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)

    def add(self, kind: str, inputs: list[str], name: str = "", **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def constant(self, value: torch.Tensor) -> str:
        name = f"parameter_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value.detach().numpy()), name))
        return name

    def through(self, module: nn.Module, x: str, name: str = "") -> str:
        """Append a layer, or several in sequence; returns the name of what comes out."""
        match module:
            case nn.Sequential():
                for layer in module:
                    x = self.through(layer, x)
                return x
            case nn.Linear():
                return self.add("Gemm", [x, self.constant(module.weight), self.constant(module.bias)], name, transB=1)
            case nn.Conv2d():
                return self._convolution(module, x, name)
            case nn.ReLU():
                return self.add("Relu", [x], name)
            case nn.MaxPool2d():
                size = [int(module.kernel_size)] * 2  # type: ignore[arg-type]  # our networks give one number
                return self.add("MaxPool", [x], name, kernel_shape=size, strides=size)
            case nn.AdaptiveAvgPool2d():
                return self.add("GlobalAveragePool", [x], name)
            case nn.Flatten():
                return self.add("Flatten", [x], name, axis=1)
            case Standardise():
                mean = self.constant(module.mean)
                filled = self.add("Where", [self.add("IsNaN", [x]), mean, x])
                return self.add("Div", [self.add("Sub", [filled, mean]), self.constant(module.deviation)], name)
            case _:
                raise SealingError(f"no export for the layer {type(module).__name__}")

    def _convolution(self, layer: nn.Conv2d, x: str, name: str) -> str:
        plain = set(layer.dilation) == {1} and layer.groups == 1 and layer.padding_mode == "zeros"
        if layer.bias is None or isinstance(layer.padding, str) or not plain:
            raise SealingError(f"no export for {layer}: only plain convolutions with a bias and zeros around")
        inputs = [x, self.constant(layer.weight), self.constant(layer.bias)]
        return self.add("Conv", inputs, name, pads=[*layer.padding] * 2, strides=[*layer.stride])

    def finish(self, inputs: list[Any], outputs: list[str], classes: int) -> bytes:
        infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", classes]) for name in outputs]
        graph = helper.make_graph(self.nodes, "garrison", inputs, infos, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data
