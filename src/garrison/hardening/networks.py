"""The networks that hardening trains: a LeNet-class victim, heads on its features, networks of their own for f'.

Every network is called in evaluation mode once it is trained, and none holds batch normalisation: a row's answer must not
depend on the rest of its batch.
"""

from __future__ import annotations

import math

from garrison.errors import MissingExtraError, UnsupportedModelError

try:
    import torch
    from torch import nn
except ImportError as error:
    raise MissingExtraError("torch", "torch") from error

SMALLEST_IMAGE = 12
"""Height and width below which an image is treated as a table."""


class Network(nn.Module):
    """Features and a linear answer over them; `forward` gives logits, shape (rows, classes).

    Attributes:
        body: input (rows, ...) -> penultimate features (rows, `width`).
        answer: features -> logits.
        width: number of penultimate features.
    """

    def __init__(self, body: nn.Sequential, width: int, classes: int) -> None:
        super().__init__()
        self.body, self.width, self.answer = body, width, nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.answer(self.body(x))
        return logits


def lenet(shape: tuple[int, int, int], classes: int) -> Network:
    """LeNet-5 (LeCun et al., 1998) with ReLU and max pooling; 61,706 parameters for (1, 28, 28) and 10 classes.

    Args:
        shape: (channels, height, width), at least 12 by 12.

    Raises:
        UnsupportedModelError: a smaller image.
    """
    channels, height, width = shape
    if min(height, width) < SMALLEST_IMAGE:
        raise UnsupportedModelError(
            f"LeNet needs images of at least {SMALLEST_IMAGE} by {SMALLEST_IMAGE}, found {shape}"
        )
    rows, columns = (height // 2 - 4) // 2, (width // 2 - 4) // 2
    body = nn.Sequential(
        # Pooling before ReLU gives the same numbers and a quarter of the work.
        *(nn.Conv2d(channels, 6, 5, padding=2), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU()),
        nn.Flatten(),
        *(nn.Linear(16 * rows * columns, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU()),
    )
    return Network(body, 84, classes)


def head(width: int, classes: int) -> nn.Linear:
    """A second head for f': penultimate features (rows, width) -> logits (rows, classes)."""
    return nn.Linear(width, classes)


class Standardise(nn.Module):
    """(x - mean) / deviation; NaN, where it stands for "missing", becomes the mean.

    Args:
        mean, deviation: broadcastable to one row.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.where(torch.isnan(x), self.mean, x) - self.mean) / self.deviation


def own_network(shape: tuple[int, ...], classes: int, mean: torch.Tensor, deviation: torch.Tensor) -> Network:
    """A small network for f' by input shape: convolutions for images (channels, height, width), else a dense one.

    Args:
        shape: of one row.
        mean, deviation: of the training rows, see `Standardise`.
    """
    first = Standardise(mean, deviation)
    if is_image(shape):
        return Network(nn.Sequential(first, *_convolutions(shape[0])), 32, classes)
    features = math.prod(shape)
    width = max(32, min(128, 2 * features))
    dense = (nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return Network(nn.Sequential(nn.Flatten(), first, *dense), width, classes)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether a row of this shape is treated as an image (channels, height, width)."""
    return len(shape) == 3 and min(shape[1:]) >= SMALLEST_IMAGE


def _convolutions(channels: int) -> tuple[nn.Module, ...]:
    """Three strided convolutions and a mean over places, so that any image size fits and the cost stays small."""
    return (
        *(nn.Conv2d(channels, 8, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def parameters(network: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in network.parameters())
