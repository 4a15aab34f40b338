"""FeatureFool moves features to the guide and stays near the source; noise of the same size does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.attacks.adversarial.nets import as_tensor, blocks, digits

from garrison.attacks.adversarial.features import (
    feature_adversary,
    featurefool,
    intra_class_distance,
    triplet_loss,
    unit_features,
)
from garrison.attacks.adversarial.gradients import distance


def phi(images: torch.Tensor) -> torch.Tensor:
    small = torch.nn.functional.interpolate(images, (28, 28), mode="bilinear", align_corners=False) * 2.0 - 1.0
    found: torch.Tensor = blocks()(small)
    return found


def pairs(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources, and guides of other classes."""
    x, y = digits()
    sources = np.arange(600, 600 + count)
    guides = np.array([next(j for j in range(800 + i, 1797) if y[j] != y[s]) for i, s in enumerate(sources)])
    return as_tensor(x[sources]), as_tensor(x[guides])


def losses(images: torch.Tensor, sources: torch.Tensor, guides: torch.Tensor, margin: float) -> torch.Tensor:
    unit = unit_features(phi)
    with torch.inference_mode():
        return triplet_loss(unit, images, unit(guides), unit(sources), torch.full((len(images),), margin))


def noise_like(made: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """The sources with noise of the same L2 as the examples, image by image; not cut to the box, which would only shrink it."""
    noise = torch.randn(sources.shape, generator=torch.Generator().manual_seed(0))
    size = distance(made, sources) / noise.flatten(1).norm(dim=1)
    found: torch.Tensor = sources + noise * size[:, None, None, None]
    return found


def test_featurefool_moves_features_to_the_guide_and_noise_of_equal_size_does_not() -> None:
    sources, guides = pairs()
    made = featurefool(phi, sources, guides, margin=0.1, trade_off=20.0, steps=15)
    before, after = losses(sources, sources, guides, 0.1), losses(made, sources, guides, 0.1)
    control = losses(noise_like(made, sources), sources, guides, 0.1)
    assert made.min() >= 0
    assert made.max() <= 1
    # Two digits are about 4 apart; an example stays far nearer to its source than to its guide.
    assert distance(made, sources).mean() < 0.5 * distance(sources, guides).mean()
    assert (after < 0.35 * before).float().mean() > 0.9
    assert (control > 0.6 * before).float().mean() > 0.9


def test_a_larger_margin_and_a_dearer_loss_move_further() -> None:
    sources, guides = pairs(8)
    far = [
        float(distance(featurefool(phi, sources, guides, margin=m, trade_off=c, steps=10), sources).mean())
        for m, c in ((-0.5, 10.0), (0.3, 10.0), (0.3, 1.0))
    ]
    assert far[0] < far[1]
    assert far[2] < far[1]
    # The hinge is met from the start: nothing is changed.
    met = featurefool(phi, sources, guides, margin=-2.5, trade_off=20.0, steps=5)
    assert torch.equal(met, sources)


def test_feature_adversary_comes_nearer_within_its_box() -> None:
    sources, guides = pairs(12)
    made = feature_adversary(phi, sources, guides, epsilon=0.2, steps=20)
    unit = unit_features(phi)
    with torch.inference_mode():
        before, after = (distance(unit(x), unit(guides)) for x in (sources, made))
        noisy = noise_like(made, sources)
        control = distance(unit(noisy), unit(guides))
    assert (made - sources).abs().max() <= 0.2 + 1e-6
    assert made.min() >= 0
    assert made.max() <= 1
    assert after.mean() < 0.8 * before.mean()
    assert control.mean() > 0.9 * before.mean()


def test_the_gradient_of_the_triplet_loss_is_right() -> None:
    """Against finite differences, in double precision, away from the hinge."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    unit = unit_features(lambda x: x.flatten(1) @ matrix.T)
    x, near, far = (torch.rand(2, 1, 2, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    margin = torch.tensor([1.5, 1.5], dtype=torch.float64)

    def loss(images: torch.Tensor) -> torch.Tensor:
        return triplet_loss(unit, images, unit(near), unit(far), margin).sum()

    assert torch.autograd.gradcheck(loss, x.requires_grad_())


def test_the_distance_within_a_class() -> None:
    features = torch.tensor([[0.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    assert intra_class_distance(features, torch.tensor([0, 0, 1])) == pytest.approx(1.0)
    # No class has two members: the mean over all pairs.
    assert intra_class_distance(features, torch.tensor([0, 1, 2])) == pytest.approx((1 + 5 + 26**0.5) / 3)


def test_no_pictures_make_no_examples() -> None:
    none = torch.zeros((0, 1, 8, 8))
    assert featurefool(phi, none, none, margin=0.1, trade_off=1.0, steps=2).shape == none.shape
    assert feature_adversary(phi, none, none, epsilon=0.1, steps=2).shape == none.shape
