"""The networks that a thief trains: small, chosen by the shape of a row, and alike for every target.

Invariants: no batch normalisation, so that a row's answer does not depend on the rest of its batch; equal rows, targets and
seed give equal clones on the same number of threads. Needs torch, and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from garrison.attacks.exam import Clone
from garrison.attacks.extraction.pixels import picture_shape
from garrison.attacks.oracle import OracleFacts
from garrison.errors import MissingExtraError
from garrison.types import Array, FloatArray

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

SMALLEST_IMAGE = 12
"""Height and width below which a row is treated as a table."""
LARGEST_LENET = 64
"""Height and width above which places are averaged before the dense layers."""
_SLICE = 1000
_RISE = 0.1
"""Share of the steps in which the learning rate rises."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a clone is trained: AdamW (Loshchilov and Hutter 2019) with averaged weights (Izmailov et al., UAI 2018).

    Attributes:
        epochs: passes over the answered rows.
        fewest_steps: more passes are made where so few rows would give fewer steps.
        batch: rows in a step.
        learning_rate: of AdamW, constant after a short rise.
        weight_decay: of AdamW.
        averaged: share of the steps, at the end, over which the weights are averaged; 0 takes the last ones.
        balance: 0 weights all rows alike; 1 weights the classes alike, as often as each was answered.
    """

    epochs: int
    fewest_steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    averaged: float
    balance: float


class Scale(nn.Module):
    """(x - shift) * factor; NaN, where it stands for "missing", becomes 0."""

    shift: torch.Tensor
    factor: torch.Tensor

    def __init__(self, shift: torch.Tensor, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("factor", factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nan_to_num((x - self.shift) * self.factor)


class ChannelsFirst(nn.Module):
    """Rows (n, height, width) or (n, height, width, channels) as (n, channels, height, width)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unsqueeze(1) if x.dim() == 3 else x.movedim(-1, 1)


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(channels, height, width) of rows that are treated as images; None for all others.

    Channels stand first, in any number; or last or nowhere, as `picture_shape` has it.
    """
    first = (shape[0], shape[1], shape[2]) if len(shape) == 3 else None
    for found in (first, picture_shape(shape)):
        if found is not None and min(found[1:]) >= SMALLEST_IMAGE:
            return found
    return None


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether a row of this shape is treated as an image."""
    return image_shape(shape) is not None


def network(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """LeNet-5 (LeCun et al. 1998, with max pooling) for images, a dense network for all else; gives logits."""
    image = image_shape(shape)
    if image is not None:
        net = _lenet(image, classes)
        return net if image == shape else nn.Sequential(ChannelsFirst(), *net)
    width = max(64, min(256, 4 * math.prod(shape)))
    dense = (nn.Linear(math.prod(shape), width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(nn.Flatten(), *dense, nn.Linear(width, classes))


def _lenet(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    channels, height, width = shape
    rows, columns = (height // 2 - 4) // 2, (width // 2 - 4) // 2
    # Tanh as published: it carries what was learnt on one kind of image to another better than ReLU does.
    # Pooling before it gives the same numbers, and a quarter of the work.
    first = (nn.Conv2d(channels, 6, 5, padding=2), nn.MaxPool2d(2), nn.Tanh())
    second: tuple[nn.Module, ...] = (nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.Tanh())
    if max(height, width) > LARGEST_LENET:
        rows, columns, second = 5, 5, (*second, nn.AdaptiveAvgPool2d(5))
    dense = (nn.Linear(16 * rows * columns, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh())
    return nn.Sequential(*first, *second, nn.Flatten(), *dense, nn.Linear(84, classes))


def scaling(x: Array, facts: OracleFacts) -> Scale:
    """Images by the range of their values where it is known, everything else by the mean and deviation of its features."""
    low, high = float(np.min(facts.low)), float(np.max(facts.high))
    if is_image(facts.shape) and math.isfinite(low) and math.isfinite(high) and high > low:
        return Scale(torch.tensor(low), torch.tensor(1.0 / (high - low)))
    rows = x.reshape(len(x), -1).astype(np.float64)
    known = np.isfinite(rows)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, rows, 0.0).sum(axis=0) / count
    deviation = np.sqrt((np.where(known, rows - mean, 0.0) ** 2).sum(axis=0) / count)
    deviation = np.where(deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6), deviation, 1.0)
    shift, factor = mean.reshape(facts.shape), (1.0 / deviation).reshape(facts.shape)
    return Scale(torch.as_tensor(shift.astype(np.float32)), torch.as_tensor(factor.astype(np.float32)))


def train_clone(x: Array, targets: FloatArray, facts: OracleFacts, recipe: Recipe, seed: int) -> Clone:
    """A clone that answers as the targets do.

    Args:
        x: (rows, *shape), the answered rows; with none of them the clone answers every class alike.
        targets: (rows, classes), probabilities, or ones and zeros for labels. Cross-entropy is descended against them.
        facts: of the service.
        recipe: see `Recipe`.
        seed: of weights and order of rows. The generator is this clone's own, so that clones may be trained side by side.
    """
    if not len(x):
        return lambda rows: np.full((len(rows), facts.classes), 1.0 / facts.classes, dtype=np.float32)
    generator = torch.Generator().manual_seed(seed)
    scale = scaling(x, facts)
    net: nn.Module = fresh(facts, generator)
    with torch.inference_mode(mode=False):
        rows = scale(torch.as_tensor(x.astype(np.float32)))
        goals = torch.as_tensor(targets.astype(np.float32))
        net = descend(net, rows, goals, recipe, generator)
    whole = nn.Sequential(scale, net).eval()
    return lambda asked: answer(whole, asked)


def fresh(facts: OracleFacts, generator: torch.Generator) -> nn.Sequential:
    """A new network of the kind that `network` gives."""
    with torch.device("meta"):
        net = network(facts.shape, facts.classes)
    net = reset(net.to_empty(device="cpu"), generator)
    return net.to(memory_format=torch.channels_last) if is_image(facts.shape) else net  # type: ignore[call-overload]


def reset(net: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    """The network with weights and biases uniform within 1 / sqrt(fan-in), the layers' usual start, from its own generator."""
    for layer in net:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = 1.0 / math.sqrt(layer.weight[0].numel())
            for tensor in (layer.weight, layer.bias):
                if tensor is not None:
                    nn.init.uniform_(tensor, -bound, bound, generator=generator)
    return net


def _weights(targets: torch.Tensor, balance: float) -> torch.Tensor:
    """One weight a row, mean 1: sum_k t_k / m_k^balance with m_k the mean answer of class k.

    Surrogate rows are answered with a few classes most of the time; a thief who wants all classes weights the rare ones up.
    """
    mean = targets.mean(dim=0).clamp_min(1.0 / len(targets))
    weights = (targets / mean**balance).sum(dim=1)
    return weights / weights.mean()


def descend(
    net: nn.Module,
    rows: torch.Tensor,
    targets: torch.Tensor,
    recipe: Recipe,
    generator: torch.Generator,
) -> nn.Module:
    """The trained network; `net` itself is trained along the way.

    Args:
        net: gives logits.
        rows: as the network takes them.
        targets: (rows, classes), probabilities.
        recipe: see `Recipe`.
        generator: of the order of rows.
    """
    weights = _weights(targets, recipe.balance)
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    per_epoch = math.ceil(len(rows) / recipe.batch)
    epochs = max(recipe.epochs, math.ceil(recipe.fewest_steps / per_epoch))
    steps = epochs * per_epoch
    rise, last = max(1, math.ceil(_RISE * steps)), steps - math.floor(recipe.averaged * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / rise))
    mean = torch.optim.swa_utils.AveragedModel(net)
    net.train()
    done = 0
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(rows), generator=generator), recipe.batch):
            optimiser.zero_grad(set_to_none=True)
            losses = functional.cross_entropy(net(rows[batch]), targets[batch], reduction="none")
            (losses * weights[batch]).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            done += 1
            if done >= last:
                mean.update_parameters(net)
    found: nn.Module = mean.module.eval()
    return found


@torch.inference_mode()
def answer(net: nn.Module, asked: Array) -> FloatArray:
    """The network's probabilities for rows (n, *shape), in slices."""
    parts = torch.split(torch.as_tensor(asked.astype(np.float32)), _SLICE)
    found: FloatArray = torch.cat([torch.softmax(net(part), dim=1) for part in parts]).numpy()
    return found
