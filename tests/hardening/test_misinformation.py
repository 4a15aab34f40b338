from __future__ import annotations

import numpy as np
import pytest
import torch

from garrison.errors import CalibrationError
from garrison.hardening import misinformation
from garrison.hardening.measures import wrongness
from garrison.hardening.misinformation import objective, train_head, train_network, wrong_loss
from garrison.hardening.networks import Network
from garrison.hardening.training import Training, apply

from .conftest import QUICK, Digits

TABLE = Training(epochs=30, batch=128, learning_rate=3e-3, threads=1)


def test_the_loss_of_a_perfect_f_is_zero() -> None:
    y = torch.arange(5)
    perfect = torch.where(torch.eye(5, dtype=torch.bool), -60.0, 0.0)
    assert float(wrong_loss(perfect, y)) == pytest.approx(0.0, abs=1e-6)
    ignorant = torch.zeros(5, 5)
    assert float(wrong_loss(ignorant, y)) == pytest.approx(np.log(5 / 4))


@pytest.mark.parametrize("size", [0.0, 50.0, 1e4])
def test_loss_and_gradient_stay_finite(size: float) -> None:
    """-log(1 - softmax) computed as written is infinite here: 1 - softmax is exactly 0."""
    logits = (size * torch.eye(4)).requires_grad_()
    y = torch.arange(4)
    loss = objective(logits, y)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    if size == 1e4:
        assert wrong_loss(logits, y).item() == pytest.approx(1e4, rel=1e-3)
        assert torch.isinf(-torch.log(1 - logits.softmax(dim=1)[0, 0]))


def test_a_head_is_wrong_and_spread_and_leaves_the_victim_alone(victim: Network, digits: Digits) -> None:
    before = victim.answer.weight.clone()
    second = train_head(victim, digits.x, digits.y, outliers=digits.x[:200], options=QUICK)
    assert torch.equal(victim.answer.weight, before)
    logs = torch.log_softmax(second(apply(victim.body, digits.unseen_x).clone()), dim=1).detach().numpy()
    judged = wrongness(logs, digits.unseen_y)
    assert judged.loss < 0.3 * judged.loss_untrained
    assert judged.entropy > 0.8


def test_without_the_entropy_f_collapses(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    entropies = {}
    x = digits.x.reshape(-1, 256)
    for diversity in (misinformation.DIVERSITY, 0.0):
        monkeypatch.setattr(objective, "__defaults__", (diversity,))
        network = train_network(x, digits.y, 10, options=TABLE)
        logs = torch.log_softmax(apply(network, digits.unseen_x.reshape(-1, 256)), dim=1).numpy()
        judged = wrongness(logs, digits.unseen_y)
        assert judged.loss < judged.loss_untrained
        entropies[diversity] = judged.entropy
    assert entropies[misinformation.DIVERSITY] > 0.9
    assert entropies[0.0] < entropies[misinformation.DIVERSITY] - 0.05


def test_an_image_network_learns_to_be_wrong(digits: Digits) -> None:
    network = train_network(digits.x, digits.y, 10, options=QUICK)
    judged = wrongness(torch.log_softmax(apply(network, digits.unseen_x), dim=1).numpy(), digits.unseen_y)
    assert judged.loss < 0.5 * judged.loss_untrained


def test_constant_features_and_missing_values_do_no_harm() -> None:
    x = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    x[:, 1], x[::5, 2] = 7.0, np.nan
    network = train_network(x, np.arange(300) % 3, 3, options=Training(epochs=1, threads=1))
    assert torch.isfinite(apply(network, x)).all()


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        (np.zeros(9, dtype=np.int64), 3, "as many labels"),
        (np.zeros(10, dtype=np.int64), 2, "at least 3 classes"),
        (np.full(10, 3), 3, "0 to 2"),
        (np.full(10, -1), 3, "0 to 2"),
    ],
)
def test_bad_labels(y: np.ndarray[tuple[int], np.dtype[np.int64]], classes: int, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        train_network(np.zeros((10, 2), dtype=np.float32), y, classes)


def test_infinite_values_are_refused() -> None:
    with pytest.raises(CalibrationError, match="infinite"):
        train_network(np.full((4, 2), np.inf, dtype=np.float32), np.arange(4) % 3, 3)
