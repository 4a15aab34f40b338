"""Six small networks with random weights, one of each kind that must run in segments."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from garrison.bundle.manifest import InputSpec, Provenance
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.crypto.owner import OwnerKey
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.types import Array, DefenseSpec, Task

CLASSES = 10


class Residual(nn.Module):
    """x + f(x), or a projection of x where the shape changes."""

    def __init__(self, body: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.skip = body, nn.Identity() if skip is None else skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class Mean(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(self.axes)


def convolution(m: int, n: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(m, n, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(n))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 384), nn.ReLU(), nn.Linear(384, 256), nn.ReLU(), nn.Linear(256, CLASSES)
    )  # fmt: skip


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 240), nn.ReLU(), nn.Linear(240, 84), nn.ReLU(), nn.Linear(84, CLASSES),
    )  # fmt: skip


def plain_cnn() -> nn.Module:
    return nn.Sequential(
        convolution(3, 24), nn.ReLU(), nn.MaxPool2d(2), convolution(24, 64), nn.ReLU(), nn.MaxPool2d(2),
        convolution(64, 128), nn.ReLU(), convolution(128, 128), nn.ReLU(), Mean(2, 3), nn.Linear(128, CLASSES),
    )  # fmt: skip


def block(m: int, n: int, stride: int = 1) -> nn.Module:
    body = nn.Sequential(convolution(m, n, stride=stride), nn.ReLU(), convolution(n, n))
    return Residual(body, None if m == n else convolution(m, n, 1, stride))


def resnet18(width: int = 16, classes: int = CLASSES) -> nn.Module:
    """The shape of ResNet-18; 47 MB at width 64 and 1,000 classes."""
    w = width
    return nn.Sequential(
        convolution(3, w, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        block(w, w), block(w, w), block(w, 2 * w, 2), block(2 * w, 2 * w),
        block(2 * w, 4 * w, 2), block(4 * w, 4 * w), block(4 * w, 8 * w, 2), block(8 * w, 8 * w),
        Mean(2, 3), nn.Linear(8 * w, classes),
    )  # fmt: skip


def depthwise_cnn() -> nn.Module:
    def step(m: int, n: int) -> nn.Module:
        return nn.Sequential(convolution(m, m, groups=m), nn.ReLU(), convolution(m, n, 1), nn.ReLU())

    return nn.Sequential(
        convolution(3, 64, stride=2), nn.ReLU(), step(64, 128), step(128, 256), step(256, 256), Mean(2, 3), nn.Linear(256, CLASSES)
    )  # fmt: skip


class Encoder(nn.Module):
    """A transformer encoder over patches, written out (attention, layer norm, feed forward)."""

    def __init__(self, size: int = 96, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, size, 4, 4)
        self.heads = heads
        self.attention = nn.ModuleList(nn.Linear(size, 3 * size) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(size, size) for _ in range(layers))
        self.wide = nn.ModuleList(nn.Linear(size, 4 * size) for _ in range(layers))
        self.narrow = nn.ModuleList(nn.Linear(4 * size, size) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2 * layers))
        self.last = nn.Linear(size, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for i, (attention, out, wide, narrow) in enumerate(
            zip(self.attention, self.out, self.wide, self.narrow, strict=True)
        ):
            q, k, v = attention(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            scores = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
            x = self.norms[2 * i](x + out((scores @ v).transpose(1, 2).flatten(2)))
            x = self.norms[2 * i + 1](x + narrow(nn.functional.gelu(wide(x))))
        found: torch.Tensor = self.last(x.mean(1))
        return found


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (mlp, (64,)),
    "LeNet": (lenet, (1, 28, 28)),
    "plain CNN": (plain_cnn, (3, 16, 16)),
    "ResNet-18": (resnet18, (3, 64, 64)),
    "transformer encoder": (Encoder, (3, 16, 16)),
    "depthwise CNN": (depthwise_cnn, (3, 32, 32)),
}


def export(network: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    """As ONNX, with random weights that do not make all answers alike."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            nn.Sequential(network, nn.Softmax(1)).eval(),
            (torch.zeros(2, *shape),),
            buffer,  # type: ignore[arg-type]  # the exporter of old takes files too
            dynamo=False,
            input_names=["x"],
            output_names=["probabilities"],
            dynamic_axes={"x": {0: "rows"}, "probabilities": {0: "rows"}},
            opset_version=17,
        )
    return onnx.load_from_string(buffer.getvalue())


def rows_of(shape: tuple[int, ...], rows: int) -> Array:
    return np.random.default_rng(rows).normal(0, 1, (rows, *shape)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class SealedNetwork:
    model: onnx.ModelProto
    bundle: VerifiedBundle
    shape: tuple[int, ...]
    path: Path
    owner: OwnerKey


def seal_network(model: onnx.ModelProto, shape: tuple[int, ...], path: Path) -> SealedNetwork:
    draft = Draft(
        name="network",
        version=1,
        model=model,
        task=Task.CLASSIFICATION,
        labels=(),
        inputs=(InputSpec(name="x", datatype="FP32", shape=shape, minimum=-9.0, maximum=9.0),),
        guard=(DefenseSpec(name="bounds"), DefenseSpec(name="release")),
        provenance=Provenance(created="2026-01-01T00:00:00Z", source_format="torch", source_sha256="0" * 64),
        rows={"x": rows_of(shape, 3)},
    )
    owner = OwnerKey.generate()
    seal(draft, owner, path)
    return SealedNetwork(model, verify(path, [owner.public]), shape, path, owner)


def seal_named(name: str, path: Path) -> SealedNetwork:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    return seal_network(export(make(), shape), shape, path)
