"""The L2 attack of Carlini and Wagner: the smallest change that alters the class.

"Towards Evaluating the Robustness of Neural Networks" (IEEE S&P 2017), section VI: descend `|x' - x|^2 + c f(x')` with
`f = max(z_y - max_{k != y} z_k, -kappa)` over w where `x' = (tanh w + 1) / 2`, by Adam, with a binary search over c for each image.

Not covered: their L0 and L-infinity attacks, several starting points.
"""

from __future__ import annotations

from garrison.attacks.adversarial.gradients import Network, distance, gradient, margin_to
from garrison.errors import MissingExtraError

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

_EDGE = 1e-6
"""Values are kept this far from 0 and 1, where the change of variables has no slope."""
_BETAS = (0.9, 0.999)


def carlini_wagner(
    logits: Network,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    steps: int,
    searches: int = 4,
    constant: float = 1.0,
    confidence: float = 0.0,
    learning_rate: float = 0.05,
    targeted: bool = False,
) -> torch.Tensor:
    """Images that the network calls something else, or `labels` where `targeted`; the image itself where none was found.

    Args:
        logits: the network.
        images: (n, channels, height, width) in [0, 1].
        labels: (n,), the classes to leave, or to reach where `targeted`.
        steps: of Adam, for each value of c.
        searches: values of c that are tried for each image.
        constant: the first c.
        confidence: kappa, by how much the other class must lead.
        learning_rate: of Adam.
        targeted: go towards the labels.
    """
    sign = -1.0 if targeted else 1.0
    count = len(images)
    c, low = torch.full((count,), constant), torch.zeros(count)
    high = torch.full((count,), torch.inf)
    best, nearest = images.clone(), torch.full((count,), torch.inf)
    for _ in range(searches):
        reached = torch.zeros(count, dtype=torch.bool)
        for found, lead in _descend(logits, images, labels, c, sign, steps, learning_rate, confidence):
            hit, far = lead <= -confidence, distance(found, images)
            closer = hit & (far < nearest)
            best[closer], nearest[closer] = found[closer], far[closer]
            reached |= hit
        high = torch.where(reached, torch.minimum(high, c), high)
        low = torch.where(reached, low, torch.maximum(low, c))
        c = torch.where(high.isinf(), low * 10.0, (low + high) / 2.0)
    return best


def _descend(
    logits: Network,
    images: torch.Tensor,
    labels: torch.Tensor,
    c: torch.Tensor,
    sign: float,
    steps: int,
    learning_rate: float,
    confidence: float,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The last images of each tenth of the way, and by how much the label still leads in each."""
    w = torch.atanh((images * 2.0 - 1.0).clamp(-1.0 + _EDGE, 1.0 - _EDGE))
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    passed: list[tuple[torch.Tensor, torch.Tensor]] = []
    for step in range(1, steps + 1):
        leads: list[torch.Tensor] = []

        def loss(v: torch.Tensor, leads: list[torch.Tensor] = leads) -> torch.Tensor:
            x = (torch.tanh(v) + 1.0) / 2.0
            lead = sign * margin_to(logits(x), labels)
            leads.append(lead.detach())
            return (x - images).flatten(1).square().sum(dim=1) + c * lead.clamp_min(-confidence)

        _, slope = gradient(loss, w)
        passed.append(((torch.tanh(w) + 1.0) / 2.0, leads[0]))
        first = _BETAS[0] * first + (1 - _BETAS[0]) * slope
        second = _BETAS[1] * second + (1 - _BETAS[1]) * slope.square()
        rise = (first / (1 - _BETAS[0] ** step), second / (1 - _BETAS[1] ** step))
        w = w - learning_rate * rise[0] / (rise[1].sqrt() + 1e-8)
    return passed
