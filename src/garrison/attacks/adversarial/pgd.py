"""Projected gradient descent: raise the loss within a ball around an image.

Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018),
equation 2.2 with the L-infinity ball and a random start.

Not covered: other norms, restarts, step sizes that adapt. The published share of success is a lower bound of what is possible.
"""

from __future__ import annotations

from garrison.attacks.adversarial.gradients import Network, gradient
from garrison.errors import MissingExtraError

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

OVERSHOOT = 2.5
"""The default step can cross the ball this many times its radius in all steps together."""


def pgd(
    logits: Network,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
    targeted: bool = False,
) -> torch.Tensor:
    """Images that the network calls something else, or `labels` where `targeted`.

    Args:
        logits: the network.
        images: (n, channels, height, width) in [0, 1].
        labels: (n,), the classes to leave, or to reach where `targeted`.
        epsilon: largest change of a value.
        steps: of gradient ascent.
        generator: of the random start.
        step_size: 2.5 epsilon / steps where None.
        targeted: go towards the labels.
    """
    size = OVERSHOOT * epsilon / steps if step_size is None else step_size
    low, high = (images - epsilon).clamp_min(0.0), (images + epsilon).clamp_max(1.0)
    drawn = torch.rand(images.shape, generator=generator)
    found = low + drawn * (high - low)
    sign = -1.0 if targeted else 1.0
    for _ in range(steps):
        _, slope = gradient(lambda x: functional.cross_entropy(logits(x), labels, reduction="none"), found)
        found = torch.minimum(torch.maximum(found + sign * size * slope.sign(), low), high)
    return found
