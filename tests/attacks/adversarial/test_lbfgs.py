"""The optimiser of examples: as good as the library's, image by image, and never out of its box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

from garrison.attacks.adversarial.features import triplet_loss, unit_features
from garrison.attacks.adversarial.gradients import gradient
from garrison.attacks.adversarial.lbfgs import box_lbfgs


def random_features(values: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(3)
    layer = torch.nn.Linear(values, 20)
    torch.nn.init.normal_(layer.weight, std=0.05, generator=generator)
    torch.nn.init.zeros_(layer.bias)
    return torch.nn.Sequential(torch.nn.Flatten(), layer, torch.nn.Tanh()).requires_grad_(requires_grad=False)


class Fooling:
    """FeatureFool's loss of some images at random."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        drawn = torch.rand((2, count, 1, 12, 12), generator=generator)
        self.sources, guides = drawn[0], drawn[1]
        self.unit = unit_features(random_features(144))
        self.near, self.far, self.margin = self.unit(guides), self.unit(self.sources), torch.full((count,), 0.2)

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        fooled = triplet_loss(self.unit, images, self.near, self.far, self.margin)
        return (images - self.sources).flatten(1).square().sum(dim=1) + 5.0 * fooled

    def made(self, steps: int) -> torch.Tensor:
        zeros, ones = torch.zeros_like(self.sources), torch.ones_like(self.sources)
        return box_lbfgs(self.loss, self.sources, zeros, ones, steps)


def test_it_finds_the_nearest_point_of_the_box() -> None:
    target = torch.tensor([[[[-0.5, 0.25, 3.0]]]])
    start = torch.full_like(target, 0.5)
    found = box_lbfgs(lambda x: (x - target).flatten(1).square().sum(dim=1), start, start * 0, start * 2, 30)
    assert found.flatten().tolist() == pytest.approx([0.0, 0.25, 1.0], abs=1e-4)


@pytest.mark.parametrize("steps", [5, 20])
def test_it_descends_as_far_as_the_librarys(steps: int) -> None:
    case = Fooling(8)
    begun = case.loss(case.sources).mean()

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        losses, slope = gradient(case.loss, torch.as_tensor(flat.astype(np.float32)).reshape(case.sources.shape))
        return float(losses.sum()), slope.numpy().ravel().astype(np.float64)

    theirs = optimize.minimize(
        value,
        case.sources.numpy().ravel().astype(np.float64),
        jac=True,
        bounds=optimize.Bounds(0.0, 1.0),
        method="L-BFGS-B",
        options={"maxiter": steps, "maxfun": 2 * steps},
    ).fun / len(case.sources)
    made = case.made(steps)
    mine = float(case.loss(made).mean())
    assert mine < 0.6 * float(begun)
    assert mine <= 1.05 * theirs
    assert made.min() >= 0
    assert made.max() <= 1
    assert (case.loss(made) <= case.loss(case.sources)).all()


def test_an_image_does_not_depend_on_the_others() -> None:
    case = Fooling(6)

    def made(which: slice) -> torch.Tensor:
        start, near = case.sources[which], case.near[which]
        # Without the hinge of FeatureFool's loss, where a rounding may decide what is done next.
        return box_lbfgs(lambda x: (case.unit(x) - near).square().sum(dim=1), start, start * 0, start * 0 + 1, 6)

    assert torch.allclose(made(slice(None))[2:3], made(slice(2, 3)), atol=1e-3)


def test_a_step_that_leads_nowhere_is_not_taken() -> None:
    """A loss that is not a number off the start, and one without a slope."""
    start = torch.full((1, 3), 0.5)
    assert torch.equal(box_lbfgs(lambda x: x.sum(dim=1) * 0.0, start, start * 0, start * 2, 4), start)
    torn = box_lbfgs(lambda x: (x.sum(dim=1) - 2.0).sqrt() + x.sum(dim=1), start * 2, start * 0, start * 4, 4)
    assert torch.isfinite(torn).all()
