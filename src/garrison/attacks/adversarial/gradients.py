"""Gradients of a network's answers with respect to images, and the image sizes that the makers share."""

from __future__ import annotations

from collections.abc import Callable

from garrison.errors import MissingExtraError

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

Network = Callable[[torch.Tensor], torch.Tensor]
"""Images (n, channels, height, width) in [0, 1] -> logits (n, classes) or features (n, anything)."""


def gradient(loss: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One loss an image, shape (n,), and its gradient, of the images' shape.

    The loss of an image must not depend on the others.
    """
    # An audit may run inside inference mode; a gradient needs an ordinary tensor.
    with torch.inference_mode(mode=False), torch.enable_grad():
        variable = images.detach().clone().requires_grad_()
        losses = loss(variable)
        (found,) = torch.autograd.grad(losses.sum(), variable)
    return losses.detach(), found


def margin_to(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """z_label - max of the other logits, shape (n,): above 0 where the label comes first."""
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return own - others


def distance(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Euclidean distance image by image, shape (n,)."""
    found: torch.Tensor = torch.linalg.vector_norm((images - others).flatten(1), dim=1)
    return found
