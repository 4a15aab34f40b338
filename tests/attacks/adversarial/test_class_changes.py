"""PGD and Carlini-Wagner change the class of a network that one holds; random noise of the same size does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.attacks.adversarial.nets import as_tensor, digits, weights

from garrison.attacks.adversarial.carlini_wagner import carlini_wagner
from garrison.attacks.adversarial.gradients import distance, margin_to
from garrison.attacks.adversarial.pgd import pgd


def logits(images: torch.Tensor) -> torch.Tensor:
    matrix, bias = weights()
    return images.flatten(1) @ torch.as_tensor(matrix) + torch.as_tensor(bias)


def called(images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return logits(images).argmax(dim=1)


def sources(count: int = 60) -> torch.Tensor:
    return as_tensor(digits()[0][900 : 900 + count])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_pgd_changes_the_class_within_its_ball_and_noise_does_not() -> None:
    x = sources()
    own = called(x)
    made = pgd(logits, x, own, epsilon=0.15, steps=10, generator=generator())
    assert (made - x).abs().max() <= 0.15 + 1e-6
    assert made.min() >= 0
    assert made.max() <= 1
    assert (called(made) != own).float().mean() > 0.9
    signs = torch.randint(0, 2, x.shape, generator=generator()) * 2 - 1
    assert (called((x + 0.15 * signs).clamp(0, 1)) != own).float().mean() < 0.3


def test_pgd_goes_where_it_is_told() -> None:
    x = sources(30)
    wanted = (called(x) + 1) % 10
    made = pgd(logits, x, wanted, epsilon=0.3, steps=15, generator=generator(), targeted=True)
    assert (called(made) == wanted).float().mean() > 0.9


def test_carlini_wagner_changes_the_class_by_little_and_noise_of_equal_size_does_not() -> None:
    x = sources()
    own = called(x)
    made = carlini_wagner(logits, x, own, steps=40)
    assert made.min() >= 0
    assert made.max() <= 1
    assert (called(made) != own).float().mean() > 0.95
    assert (
        distance(made, x).mean()
        < distance(pgd(logits, x, own, epsilon=0.15, steps=10, generator=generator()), x).mean()
    )
    noise = torch.randn(x.shape, generator=generator())
    size = distance(made, x) / noise.flatten(1).norm(dim=1)
    assert (called((x + noise * size[:, None, None, None]).clamp(0, 1)) != own).float().mean() < 0.25


def test_carlini_wagner_is_near_the_best_there_is_on_a_linear_model() -> None:
    """The nearest boundary of a linear model is known exactly."""
    x = 0.3 + 0.4 * sources(20)  # away from the edges of the box
    own = called(x)
    matrix = weights()[0].astype(np.float64)
    z = x.flatten(1).numpy().astype(np.float64) @ matrix
    exact = []
    for row, label in zip(z, own.tolist(), strict=True):
        others = [k for k in range(10) if k != label]
        exact.append(min((row[label] - row[k]) / np.linalg.norm(matrix[:, label] - matrix[:, k]) for k in others))
    made = carlini_wagner(logits, x, own, steps=80, searches=5, learning_rate=0.03)
    found = distance(made, x).numpy()
    assert (found >= np.array(exact) - 1e-4).all()
    assert np.median(found / np.array(exact)) < 1.3


def test_confidence_asks_for_a_lead() -> None:
    x = sources(20)
    own = called(x)
    made = carlini_wagner(logits, x, own, steps=40, confidence=1.0)
    changed = called(made) != own
    assert changed.float().mean() > 0.9
    assert (margin_to(logits(made), own)[changed] <= -1.0 + 1e-4).all()


def test_an_image_that_cannot_be_changed_stays() -> None:
    x = sources(3)

    def stubborn(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :2] * 0.0 + torch.tensor([1.0, 0.0])

    assert torch.equal(carlini_wagner(stubborn, x, torch.zeros(3, dtype=torch.int64), steps=3), x)


def test_the_same_seed_gives_the_same_examples() -> None:
    x = sources(10)
    made = [pgd(logits, x, called(x), epsilon=0.1, steps=3, generator=generator()) for _ in range(2)]
    assert torch.equal(*made)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_pgd_and_carlini_wagner_agree_with_the_toolbox() -> None:
    """Shares of success within ten points, the C&W change at most a tenth larger."""
    from tests.attacks.toolbox import CarliniL2Method, ProjectedGradientDescent, PyTorchClassifier

    class Linear(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return logits(images)

    x = sources(60)
    own = called(x)
    model = PyTorchClassifier(Linear().eval(), torch.nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0))
    theirs = ProjectedGradientDescent(model, eps=0.06, eps_step=0.01, max_iter=20, verbose=False).generate(x.numpy())
    made = pgd(logits, x, own, epsilon=0.06, steps=20, generator=generator())
    success = [float((called(images) != own).float().mean()) for images in (torch.as_tensor(theirs), made)]
    assert 0.1 < success[0] < 0.95  # else an agreement says nothing
    assert abs(success[1] - success[0]) < 0.1
    carlini = CarliniL2Method(
        model, max_iter=50, binary_search_steps=5, learning_rate=0.05, batch_size=64, verbose=False
    )
    theirs = torch.as_tensor(carlini.generate(x.numpy()))
    ours = carlini_wagner(logits, x, own, steps=50, searches=5)
    both = (called(theirs) != own) & (called(ours) != own)
    assert both.float().mean() > 0.75
    sizes = [float(distance(images, x)[both].mean()) for images in (ours, theirs)]
    assert sizes[0] < 1.1 * sizes[1]
