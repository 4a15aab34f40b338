"""Limited-memory BFGS in a box, for many images at once, each with a line search and a memory of its own.

The two-loop recursion of Nocedal (1980) on the values that are free to move, a step projected onto the box, backtracking to
Armijo's condition (Bertsekas 1982, projected quasi-Newton). A library's L-BFGS-B takes one problem at a time: put together, images
share a line search, and one that cannot go on holds up all. On pictures of 112 x 92 this takes less than half the time, and is no worse.

Invariants: every image stays in its box; its loss never rises; it does not depend on the other images but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable

from garrison.attacks.adversarial.gradients import gradient
from garrison.errors import MissingExtraError

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

MEMORY = 6
"""Steps that the curvature is taken from."""
EVALUATIONS_A_STEP = 2
"""Most evaluations, on average, for each step."""
_ENOUGH = 1e-4
_SHORTER = 0.4
_TINY = 1e-12


class Curvature:
    """The last steps of each image and how the gradient changed along them.

    Args:
        images: how many.
        values: of each.
    """

    def __init__(self, images: int, values: int) -> None:
        self.count = torch.zeros(images, dtype=torch.long)
        self._steps = torch.zeros((MEMORY, images, values))
        self._changes = torch.zeros_like(self._steps)
        self._inverse = torch.zeros((MEMORY, images))
        self._all = torch.arange(images)

    def learn(self, which: torch.Tensor, steps: torch.Tensor, changes: torch.Tensor) -> None:
        """Remember a step of the images that `which` (images,) marks, where it curves upwards."""
        product = (steps * changes).sum(dim=1)
        images = self._all[which & (product > _TINY)]
        slots = self.count[images] % MEMORY
        self._steps[slots, images], self._changes[slots, images] = steps[images], changes[images]
        self._inverse[slots, images] = 1.0 / product[images]
        self.count[images] += 1

    def times(self, vectors: torch.Tensor) -> torch.Tensor:
        """The inverse Hessian, as far as it is known, times vectors (images, values)."""
        ages = range(min(MEMORY, int(self.count.max())) if len(self.count) else 0)
        if not ages:
            return vectors
        shares = []
        for age in ages:
            step, change, inverse = self._aged(age)
            shares.append(inverse * (step * vectors).sum(dim=1))
            vectors = vectors - shares[-1][:, None] * change
        _, change, inverse = self._aged(0)
        square = inverse * change.square().sum(dim=1)
        vectors = torch.where(square > 0, 1.0 / square.clamp_min(_TINY), torch.ones(()))[:, None] * vectors
        for age in reversed(ages):
            step, change, inverse = self._aged(age)
            vectors = vectors + (shares[age] - inverse * (change * vectors).sum(dim=1))[:, None] * step
        return vectors

    def _aged(self, age: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        slots = (self.count - 1 - age) % MEMORY
        known = torch.where(self.count > age, self._inverse[slots, self._all], torch.zeros(()))
        return self._steps[slots, self._all], self._changes[slots, self._all], known


def box_lbfgs(
    loss: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    """Images in the box [low, high] that descend `loss`, image by image.

    Args:
        loss: images (n, ...) -> (n,); that of an image does not depend on the others.
        start: (n, ...), in the box.
        low, high: like `start`.
        steps: most steps of each image.
    """
    with torch.inference_mode(mode=False):  # an audit may run inside inference mode

        def value(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            losses, slope = gradient(loss, flat.reshape(start.shape))
            return losses, slope.flatten(1)

        flat, least, most = (part.flatten(1).clone() for part in (start, low, high))
        return _descended(value, flat, least, most, steps).reshape(start.shape)


def _descended(
    value: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    x: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    losses, slope = value(x)
    memory, done = Curvature(*x.shape), torch.zeros(len(x), dtype=torch.long)
    way, length = torch.zeros_like(x), torch.ones(len(x))
    turned = torch.ones(len(x), dtype=torch.bool)
    for _ in range(EVALUATIONS_A_STEP * steps):
        if not (done < steps).any():
            break
        if turned.any():
            way = torch.where(turned[:, None], _direction(memory, x, slope, low, high), way)
            first = 1.0 / torch.linalg.vector_norm(way, dim=1).clamp_min(1.0)
            length = torch.where(turned, torch.where(memory.count == 0, first, torch.ones(())), length)
        tried = torch.minimum(torch.maximum(x + length[:, None] * way, low), high)
        new_losses, new_slope = value(tried)
        step = tried - x
        turned = (new_losses <= losses + _ENOUGH * (slope * step).sum(dim=1)) & (done < steps)
        memory.learn(turned, step, new_slope - slope)
        done += turned
        x, slope = (torch.where(turned[:, None], new, old) for new, old in ((tried, x), (new_slope, slope)))
        losses = torch.where(turned, new_losses, losses)
        length = torch.where(turned, length, _SHORTER * length)
    return x


def _direction(
    memory: Curvature, x: torch.Tensor, slope: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """Downwards, with the values left alone that stand at an edge and would leave the box."""
    free = ~(((x <= low) & (slope > 0)) | ((x >= high) & (slope < 0)))
    steepest = -slope * free
    found = -memory.times(-steepest) * free
    upwards = (found * slope).sum(dim=1) >= 0
    return torch.where(upwards[:, None], steepest, found)
