"""A convolution in parts gives the same numbers, and its weights are the same bytes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tests.runtime.networks import export, rows_of
from torch import nn

from garrison.runtime.onnx_wire import Model, opset, write_model
from garrison.runtime.parting import CHANNELS, PART_MARK, parted
from garrison.runtime.segments import cut, optimise
from garrison.types import Array

SHAPE = (3, 8, 8)
BLOCKED = ("com.microsoft.nchwc", "Conv")


class Skip(nn.Module):
    """A convolution to which something is added: what the runtime fuses into one operation of four inputs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, 1, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + x)


def network(channels: int) -> onnx.ModelProto:
    torch.manual_seed(3)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10), nn.Softmax(1))
    return export(nn.Sequential(nn.Conv2d(3, channels, 3, 1, 1), nn.ReLU(), Skip(channels), *head), SHAPE)


def whole(model: onnx.ModelProto) -> Model:
    """As the runtime makes it here, not parted."""
    return optimise(model.SerializeToString(), {}, part_bytes=1 << 40)


def run(model: Model, x: Array) -> Array:
    outputs = [bytes(value) for value in model.outputs.values()]
    inputs = [bytes(value) for value in model.inputs.values()]
    data = write_model(model.head, model.nodes, inputs, outputs, list(model.constants.values()))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: Array = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return found


def large(model: Model) -> int:
    return max(len(t.data) for t in model.constants.values() if t.data is not None)


blocked = pytest.mark.skipif(
    not any((n.domain, n.operation) == BLOCKED for n in whole(network(64)).nodes),
    reason="the runtime has no blocked convolutions on this processor",
)


@blocked
@pytest.mark.parametrize("rows", [1, 2, 37])
def test_in_parts_it_gives_the_same_numbers(rows: int) -> None:
    model = whole(network(192))
    parts = parted(model, part_bytes=64 * 192 * 9 * 4)
    assert len(parts.nodes) > len(model.nodes)
    assert {node.operation for node in parts.nodes} >= {"Split", "Concat"}
    x = rows_of(SHAPE, rows)
    np.testing.assert_allclose(run(parts, x), run(model, x), rtol=0, atol=1e-6)


@blocked
def test_the_parts_are_the_bytes_of_the_whole_in_order() -> None:
    model = whole(network(192))
    parts = parted(model, part_bytes=1)
    for node in model.nodes:
        if (node.domain, node.operation) == BLOCKED:
            of = [
                p for p in parts.nodes if p.makes[0].startswith(f"{node.makes[0]}{PART_MARK}") and p.operation == "Conv"
            ]
            pieces = [parts.constants[part.inputs[1]] for part in of]
            assert [piece.shape[0] for piece in pieces] == [CHANNELS] * 3
            assert b"".join(p.data or b"" for p in pieces) == bytes(model.constants[node.inputs[1]].data or b"")


@blocked
def test_channels_that_are_no_whole_groups_stay_together() -> None:
    model = whole(network(96))
    assert parted(model, part_bytes=1).nodes == model.nodes


@blocked
def test_of_an_old_opset_nothing_is_parted() -> None:
    model = network(192)
    assert opset(whole(model), "") >= 13
    model.opset_import[0].version = 11
    found = whole(model)
    assert parted(found, part_bytes=1) is found


@blocked
def test_parts_can_be_loaded_one_by_one() -> None:
    """Between the parts of a convolution more tensors pass than elsewhere; they count as the one that they make."""
    model = whole(network(512))
    pieces = cut(parted(model, part_bytes=1), ["probabilities"])
    assert max(pieces.sizes) * 4 < max(cut(model, ["probabilities"]).sizes)
