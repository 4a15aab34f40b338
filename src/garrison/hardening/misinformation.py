"""Trains f', the model that is wrong on purpose (Kariyappa and Qureshi, CVPR 2020).

    loss = -sum_k t_k log(1 - softmax_k(f'(x)))  -  diversity * entropy(softmax(f'(x)))

The first term is the paper's: 0 for an f' that never gives the true class any mass. Written with log(1 - p) = logsumexp over
the *other* classes, it needs no clamp against log(0). The second keeps f' spread over the wrong classes; the paper's f', without
it, collapses to three of ten, which is a fingerprint. The guard picks one wrong class for each input in proportion to f'.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from garrison.errors import CalibrationError
from garrison.hardening.networks import Network, head, is_image, own_network
from garrison.hardening.scoring import Report, silent
from garrison.hardening.training import Training, apply, descend, seeded

DIVERSITY = 0.1
"""Weight of the entropy; f' then leaves the true class about exp(-1 / DIVERSITY) of a wrong class's mass."""
HEAD = Training(epochs=5, batch=512, learning_rate=1e-2)
OWN_NETWORK = Training(epochs=5, batch=128, learning_rate=3e-3)

Rows = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer]


def wrong_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """-log(1 - softmax_y(logits)), the mean over rows; 0 for a perfect f'. Finite for every finite input."""
    true = functional.one_hot(y, logits.shape[1]).bool()
    others = logits.masked_fill(true, -torch.inf).logsumexp(dim=1)
    return (logits.logsumexp(dim=1) - others).mean()


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of softmax(logits) in nats, the mean over rows."""
    logs = functional.log_softmax(logits, dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean()


def objective(logits: torch.Tensor, y: torch.Tensor, diversity: float = DIVERSITY) -> torch.Tensor:
    """What is descended; see the module's docstring."""
    return wrong_loss(logits, y) - diversity * entropy(logits)


def train_head(
    network: Network,
    x: Rows,
    y: Labels,
    *,
    outliers: Rows | None = None,
    options: Training = HEAD,
    report: Report = silent,
) -> nn.Linear:
    """A second head on the victim's frozen penultimate features.

    Args:
        network: the victim; not changed, run in evaluation mode.
        x: (rows, ...), y: (rows,), the victim's training data.
        outliers: (n, ...), inputs without a class, on which f' is only kept spread.
        options: see `Training`.

    Returns:
        features (rows, width) -> logits of f' (rows, classes).
    """
    _check(x, y, network.answer.out_features)
    with seeded(options.seed, options.threads):
        features, labels = apply(network.body, x).clone(), _labels(y)
        outside = None if outliers is None else apply(network.body, outliers).clone()
        second = head(network.width, network.answer.out_features)

        def step(batch: torch.Tensor) -> torch.Tensor:
            loss = objective(second(features[batch]), labels[batch])
            if outside is not None:
                loss = loss - DIVERSITY * entropy(second(outside[torch.randint(len(outside), (len(batch),))]))
            return loss

        descend(second, len(features), step, options, report)
    return second


def train_network(
    x: Rows, y: Labels, classes: int, *, options: Training = OWN_NETWORK, report: Report = silent
) -> Network:
    """An f' of its own, its form chosen by the shape of a row; for victims whose inside is not at hand.

    Args:
        x: (rows, ...), NaN where a value is missing.
        y: (rows,), class numbers; the victim's own answers do where there are no labels.
        classes: how many the victim has.
        options: see `Training`.
    """
    _check(x, y, classes)
    with seeded(options.seed, options.threads):
        network = own_network(x.shape[1:], classes, *_moments(x))
        rows, labels = torch.as_tensor(x), _labels(y)

        def step(batch: torch.Tensor) -> torch.Tensor:
            return objective(network(rows[batch]), labels[batch])

        descend(network, len(rows), step, options, report)
    return network


def _moments(x: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation: one number for images, one a feature else; a constant feature gets deviation 1."""
    flat = x.reshape(-1, 1) if is_image(x.shape[1:]) else x.reshape(len(x), -1)
    mean, deviation = np.nanmean(flat, axis=0, dtype=np.float64), np.nanstd(flat, axis=0, dtype=np.float64)
    deviation = np.where(deviation > 1e-6 * np.maximum(np.abs(mean), 1e-6), deviation, 1.0)
    return torch.as_tensor(mean.astype(np.float32)), torch.as_tensor(deviation.astype(np.float32))


def _labels(y: Labels) -> torch.Tensor:
    return torch.as_tensor(np.asarray(y, dtype=np.int64))


def _check(x: Rows, y: Labels, classes: int) -> None:
    if len(x) == 0 or len(x) != len(y):
        raise CalibrationError(f"expected as many labels as rows, at least one; found {len(x)} rows, {len(y)} labels")
    if classes < 3:
        raise CalibrationError(
            f"misinformation needs at least 3 classes, found {classes}: refuse what looks out of "
            'distribution instead (--on-ood refuse), or answer "uncertain" (--on-ood uncertain)'
        )
    if y.min() < 0 or y.max() >= classes:
        raise CalibrationError(f"class numbers must lie in 0 to {classes - 1}, found {y.min()} to {y.max()}")
    if np.isinf(x).any():
        raise CalibrationError("the training data hold infinite values")
