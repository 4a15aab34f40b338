"""Networks that a thief has before asking: pretrained on public data, cut into blocks, so that a choice of blocks is reused.

Two of them: EfficientNet-Lite0 (Tan and Le, ICML 2019; Google's Lite variant: no squeeze-and-excitation, ReLU6), trained on
ImageNet, for photographs; and a small network for small pictures, trained here on a public labelled set.

Invariants: no block depends on the rest of a batch (batch normalisation is folded into the convolutions before it); weights are
read with `weights_only`, from a file whose SHA-256 is pinned; equal arguments give equal networks on the same number of threads.

Not checked: what the weights were trained on. A thief takes them as they are.
"""

from __future__ import annotations

import copy
import functools
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from garrison import datasets
from garrison.errors import AuditError, MissingExtraError
from garrison.types import Array

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

NetworkName = Literal["efficientnet-lite0", "small-cnn"]
LITE0 = ((1, 1, 3, 16, 1), (6, 2, 3, 24, 2), (6, 2, 5, 40, 2), (6, 2, 3, 80, 3), (6, 1, 5, 112, 3), (6, 2, 5, 192, 4), (6, 1, 3, 320, 1))  # fmt: skip
"""Stages of EfficientNet-Lite0: expansion, stride of the first block, kernel, channels, blocks."""
LITE0_FEATURES = 1280
BATCH_NORM_EPSILON = 1e-3
SMALL_SIDE = 28
SMALL_FEATURES = 128
_PRETRAINING = {"batch": 128, "epochs": 3, "fewest_steps": 60}
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class Backbone:
    """A pretrained network without its last layer.

    Attributes:
        name: of the network.
        prepare: images (n, 1 or 3, height, width) in [0, 1] -> what the first block takes; can be differentiated.
        blocks: in order; the last gives (n, features).
        features: width of the last block's output.
        side: height and width that pictures are brought to.
        trained_on: which public data; "nothing" for fresh weights.
    """

    name: NetworkName
    prepare: Callable[[torch.Tensor], torch.Tensor]
    blocks: tuple[nn.Module, ...]
    features: int
    side: int
    trained_on: str

    def parameters(self, first: int, last: int | None = None) -> int:
        """How many numbers the blocks from `first` up to, but without, `last` hold."""
        return sum(p.numel() for block in self.blocks[first:last] for p in block.parameters())


def backbone(name: NetworkName, *, side: int, public: str, public_rows: int, seed: int) -> Backbone:
    """A network of the zoo.

    Args:
        name: which.
        side: height and width that images are brought to, for EfficientNet-Lite0.
        public: for the small network, the labelled set that it is trained on, such as `mnist:train`; "" for fresh weights.
        public_rows: most rows of that set.
        seed: of fresh weights where `public` is "". A pretrained network is the same for every thief.

    Raises:
        DatasetError: the weights or the public set cannot be had.
        AuditError: the public set is no set of images with classes.
    """
    if name == "efficientnet-lite0":
        return Backbone(name, functools.partial(_for_lite0, side=side), _lite0(), LITE0_FEATURES, side, "ImageNet-1k")
    if not public:
        return Backbone(name, _for_small, _fresh_small(1, seed)[0], SMALL_FEATURES, SMALL_SIDE, "nothing")
    with _LOCK:  # arms are attacked side by side; one trains, the others wait
        blocks = _small_on(public, public_rows)
    return Backbone(name, _for_small, blocks, SMALL_FEATURES, SMALL_SIDE, public)


def copied(blocks: tuple[nn.Module, ...]) -> nn.Sequential:
    """Blocks that may be trained; the zoo's own stay as they are."""
    with torch.inference_mode(mode=False):
        return nn.Sequential(*(copy.deepcopy(block) for block in blocks)).requires_grad_(requires_grad=True)


def _for_lite0(images: torch.Tensor, side: int) -> torch.Tensor:
    """Three channels, `side` pixels a side, (x - 127) / 128 of values 0 to 255."""
    coloured = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    scaled = (_resized(coloured, side) * 255.0 - 127.0) / 128.0
    return scaled.contiguous(memory_format=torch.channels_last)  # a third to a half faster here


def _for_small(images: torch.Tensor) -> torch.Tensor:
    """One channel, 28 pixels a side, about -1 to 1."""
    return _resized(images.mean(dim=1, keepdim=True), SMALL_SIDE) * 2.0 - 1.0


def _resized(images: torch.Tensor, side: int) -> torch.Tensor:
    if images.shape[2:] == (side, side):
        return images
    shrinks = min(images.shape[2:]) > side
    return functional.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=shrinks)


class SamePadded(nn.Module):
    """A convolution whose output has ceil(side / stride) pixels a side; an odd pixel of padding goes to the right and below."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, stride: int, groups: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.stride, self.groups = stride, groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.weight.shape[-1]
        pads = [max((math.ceil(n / self.stride) - 1) * self.stride + kernel - n, 0) for n in x.shape[2:]]
        even = all(pad % 2 == 0 for pad in pads)
        if not even:
            rows, columns = pads
            x = functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        padding = (pads[0] // 2, pads[1] // 2) if even else (0, 0)
        return functional.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow (Sandler et al., CVPR 2018); adds its input where the shapes agree."""

    def __init__(self, steps: nn.Sequential, *, adds: bool) -> None:
        super().__init__()
        self.steps, self.adds = steps, adds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.steps(x)
        return found + x if self.adds else found


@functools.cache
def _lite0() -> tuple[nn.Module, ...]:
    """The pretrained blocks: stem, sixteen inverted residuals, head with average pooling. 18 in all."""
    path = datasets.fetch("efficientnet-lite0")
    with torch.inference_mode(mode=False):
        return lite0_blocks(torch.load(path, weights_only=True, map_location="cpu"))


def lite0_blocks(weights: Mapping[str, torch.Tensor]) -> tuple[nn.Module, ...]:
    """The blocks of EfficientNet-Lite0 from its published weights, by name."""
    blocks: list[nn.Module] = [nn.Sequential(_folded(weights, "_conv_stem", "_bn0", 2), nn.ReLU6())]
    channels = 32
    for expansion, stride, _, wide, repeats in LITE0:
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            prefix = f"_blocks.{len(blocks) - 1}."
            parts: list[nn.Module] = []
            if expansion != 1:
                parts += [_folded(weights, f"{prefix}_expand_conv", f"{prefix}_bn0", 1), nn.ReLU6()]
            parts += [_folded(weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1", step), nn.ReLU6()]
            parts.append(_folded(weights, f"{prefix}_project_conv", f"{prefix}_bn2", 1))
            blocks.append(InvertedResidual(nn.Sequential(*parts), adds=step == 1 and channels == wide))
            channels = wide
    head = (_folded(weights, "_conv_head", "_bn1", 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return tuple(_frozen(block) for block in (*blocks, nn.Sequential(*head)))


def _folded(weights: Mapping[str, torch.Tensor], convolution: str, norm: str, stride: int) -> SamePadded:
    """A convolution and the batch normalisation after it, with its frozen statistics, as one."""
    weight = weights[f"{convolution}.weight"]
    mean, variance = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
    factor = weights[f"{norm}.weight"] / torch.sqrt(variance + BATCH_NORM_EPSILON)
    # A depthwise filter has one input channel, and so has no other convolution here.
    groups = weight.shape[0] if weight.shape[1] == 1 else 1
    return SamePadded(weight * factor[:, None, None, None], weights[f"{norm}.bias"] - mean * factor, stride, groups)


def _fresh_small(classes: int, seed: int) -> tuple[tuple[nn.Module, ...], nn.Linear]:
    """Four blocks and a last layer, weights uniform within 1 / sqrt(fan-in) from an own generator."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(mode=False):
        blocks: tuple[nn.Module, ...] = (
            nn.Sequential(_convolution(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(_convolution(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(_convolution(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            nn.Sequential(unset_linear(64 * 9, SMALL_FEATURES), nn.ReLU()),
        )
        last = unset_linear(SMALL_FEATURES, classes)
        for layer in [*(part for block in blocks for part in block.modules()), last]:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                bound = math.sqrt(3.0 / layer.weight[0].numel())
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return tuple(_frozen(block) for block in blocks), last


def _convolution(channels: int, wide: int, kernel: int) -> nn.Module:
    found: nn.Module = nn.utils.skip_init(nn.Conv2d, channels, wide, kernel, padding=kernel // 2)  # type: ignore[no-untyped-call]
    return found


def unset_linear(width: int, outputs: int) -> nn.Linear:
    """A dense layer whose weights are still to be set; the caller's random numbers are left alone."""
    found: nn.Linear = nn.utils.skip_init(nn.Linear, width, outputs)  # type: ignore[no-untyped-call]
    return found


def _frozen(block: nn.Module) -> nn.Module:
    return block.requires_grad_(requires_grad=False).eval()


@functools.lru_cache(maxsize=4)
def _small_on(public: str, rows: int) -> tuple[nn.Module, ...]:
    name, _, split = public.partition(":")
    found = datasets.load(name, split or "train")
    if found.x.ndim != 4 or found.y is None or not found.labels:
        raise AuditError(f"{public!r} is no set of images with classes; a zoo's network is trained on one")
    return pretrained_small(found.x[:rows], found.y[:rows], len(found.labels))


def pretrained_small(x: Array, y: Array, classes: int) -> tuple[nn.Module, ...]:
    """The small network's blocks, trained to tell the classes of a public set.

    Args:
        x: images (n, 1 or 3, height, width) in [0, 1].
        y: (n,), class numbers.
        classes: how many there are.
    """
    generator = torch.Generator().manual_seed(0)
    blocks, last = _fresh_small(classes, 0)
    trained = copied(blocks)
    net = nn.Sequential(trained, last).train()
    rows, wanted = torch.as_tensor(x), torch.as_tensor(y)
    batch = _PRETRAINING["batch"]
    per_epoch = math.ceil(len(rows) / batch)
    epochs = max(_PRETRAINING["epochs"], math.ceil(_PRETRAINING["fewest_steps"] / per_epoch))
    with torch.inference_mode(mode=False), torch.enable_grad():
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=epochs * per_epoch)
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(len(rows), generator=generator), batch):
                optimiser.zero_grad(set_to_none=True)
                functional.cross_entropy(net(_for_small(rows[chosen])), wanted[chosen]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
    return tuple(_frozen(block) for block in trained)
