"""Examples that look like one image and, to a network's feature layer, like another.

`featurefool`: Yu, Yang, Zhang, Tsai, Ho and Jin, "CloudLeak: Large-Scale Deep Learning Models Stealing Through Adversarial
Examples" (NDSS 2020): minimise `|x' - x_s|^2 + lambda max(D(phi(x'), phi(x_t)) - D(phi(x'), phi(x_s)) + M, 0)` over x' in
[0, 1], by box-constrained L-BFGS; `M = alpha - mean distance within a class`.

`feature_adversary`: Sabour, Cao, Faghri and Fleet, "Adversarial Manipulation of Deep Representations" (ICLR 2016): minimise
`|phi(x') - phi(x_t)|^2` with every value within epsilon of the source.

Features are brought to unit length, so that distances lie in 0 to 2 and alpha means the same on every network. Images are
optimised together, some at a time, each by a line search of its own.
"""

from __future__ import annotations

from garrison.attacks.adversarial.gradients import Network, distance
from garrison.attacks.adversarial.lbfgs import box_lbfgs
from garrison.errors import MissingExtraError

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

ALPHA = 0.5
"""The paper's alpha."""
AT_ONCE, MOST_VALUES = 64, 1_000_000
"""Images that are optimised together, and values of all of them: the optimiser keeps some 20 numbers a value."""


def unit_features(phi: Network) -> Network:
    """phi, flattened and brought to unit length: (n, features)."""
    return lambda images: functional.normalize(phi(images).flatten(1), dim=1, eps=1e-6)


def _together(images: torch.Tensor) -> int:
    return max(1, min(AT_ONCE, MOST_VALUES // images[0].numel())) if len(images) else AT_ONCE


def intra_class_distance(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean distance of two features of one class, over all such pairs; the mean over all pairs where no class has two.

    Args:
        features: (n, features), n at least 2.
        labels: (n,).
    """
    apart = torch.cdist(features, features)
    other = ~torch.eye(len(features), dtype=torch.bool)
    alike = (labels[:, None] == labels[None, :]) & other
    return float(apart[alike if alike.any() else other].mean())


def triplet_loss(
    unit: Network, images: torch.Tensor, near: torch.Tensor, far: torch.Tensor, margin: torch.Tensor
) -> torch.Tensor:
    """max(D(phi(x'), near) - D(phi(x'), far) + M, 0), shape (n,).

    Args:
        unit: see `unit_features`.
        images: x'.
        near, far: (n, features), the guides' features and the sources'.
        margin: (n,), M.
    """
    own = unit(images)
    # At the source itself the distance is 0, where a root has no slope.
    to_guide, to_source = ((own - other).square().sum(dim=1).add(1e-12).sqrt() for other in (near, far))
    return (to_guide - to_source + margin).clamp_min(0.0)


def featurefool(
    phi: Network,
    sources: torch.Tensor,
    guides: torch.Tensor,
    *,
    margin: float | torch.Tensor,
    trade_off: float,
    steps: int,
) -> torch.Tensor:
    """Images near the sources whose features lie nearer to the guides'.

    Args:
        phi: a feature layer of the attacker's own network.
        sources, guides: (n, channels, height, width) in [0, 1].
        margin: M, one or one an image. M > 0 asks to be nearer to the guide by so much, M < 0 allows to be further away.
        trade_off: lambda: what a unit of the triplet loss is worth in squared change of the image.
        steps: of L-BFGS.
    """
    unit = unit_features(phi)
    margins = torch.as_tensor(margin, dtype=torch.float32).expand(len(sources))
    found = []
    size = _together(sources)
    for source, guide, m in zip(*(torch.split(t, size) for t in (sources, guides, margins)), strict=True):
        with torch.inference_mode():
            near, far = unit(guide), unit(source)
        near, far = near.clone(), far.clone()

        def loss(
            x: torch.Tensor,
            source: torch.Tensor = source,
            near: torch.Tensor = near,
            far: torch.Tensor = far,
            m: torch.Tensor = m,
        ) -> torch.Tensor:
            change = (x - source).flatten(1).square().sum(dim=1)
            return change + trade_off * triplet_loss(unit, x, near, far, m)

        found.append(box_lbfgs(loss, source, torch.zeros_like(source), torch.ones_like(source), steps))
    return torch.cat(found) if found else sources.clone()


def feature_adversary(
    phi: Network, sources: torch.Tensor, guides: torch.Tensor, *, epsilon: float, steps: int
) -> torch.Tensor:
    """Images within epsilon of the sources, value by value, whose features are as near to the guides' as that allows."""
    unit = unit_features(phi)
    found = []
    size = _together(sources)
    for source, guide in zip(*(torch.split(t, size) for t in (sources, guides)), strict=True):
        with torch.inference_mode():
            near = unit(guide)
        near = near.clone()

        def loss(x: torch.Tensor, near: torch.Tensor = near) -> torch.Tensor:
            return (unit(x) - near).square().sum(dim=1)

        low, high = (source - epsilon).clamp_min(0.0), (source + epsilon).clamp_max(1.0)
        found.append(box_lbfgs(loss, source, low, high, steps))
    return torch.cat(found) if found else sources.clone()


def moved(unit: Network, images: torch.Tensor, sources: torch.Tensor, guides: torch.Tensor) -> dict[str, float]:
    """What examples achieved: mean L2 change, and the mean of D(phi(x'), phi(x_t)) - D(phi(x'), phi(x_s)), in -2 to 2."""
    with torch.inference_mode():
        own, near, far = unit(images), unit(guides), unit(sources)
    lead = torch.linalg.vector_norm(own - near, dim=1) - torch.linalg.vector_norm(own - far, dim=1)
    return {"l2": float(distance(images, sources).mean()), "lead": float(lead.mean())}
