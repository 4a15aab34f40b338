"""Trains a victim for the examples, the demo and the benchmarks, with or without outlier exposure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from garrison.errors import CalibrationError
from garrison.hardening.networks import Network, lenet
from garrison.hardening.scoring import Report, silent
from garrison.hardening.training import Training, descend, seeded

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer]


def train_victim(
    x: Images,
    y: Labels,
    *,
    outliers: Images | None = None,
    exposure: float = 1.0,
    outlier_share: float = 0.5,
    options: Training | None = None,
    report: Report = silent,
) -> Network:
    """A LeNet trained with `CE(f(x), y) + exposure CE(uniform, f(x_oe))` (Hendrycks et al., ICLR 2019).

    Args:
        x: (rows, channels, height, width).
        y: (rows,), class numbers from 0.
        outliers: (n, channels, height, width); None for no outlier exposure.
        exposure: weight of the second term, lambda in the paper.
        outlier_share: outliers in a step, as a share of its rows.
        options: see `Training`.

    Raises:
        CalibrationError: x and y differ in length, or x is empty or not finite.
    """
    check_rows(x, y)
    options = options or Training()
    with seeded(options.seed, options.threads):
        network = lenet((x.shape[1], x.shape[2], x.shape[3]), int(y.max()) + 1)
        images, labels = torch.as_tensor(x), torch.as_tensor(np.asarray(y, dtype=np.int64))
        outside = None if outliers is None else torch.as_tensor(outliers)

        def step(batch: torch.Tensor) -> torch.Tensor:
            inside = images[batch]
            if outside is None:
                return functional.cross_entropy(network(inside), labels[batch])
            picked = torch.randint(len(outside), (max(1, int(outlier_share * len(batch))),))
            logits = network(torch.cat([inside, outside[picked]]))
            known, unknown = logits[: len(batch)], logits[len(batch) :]
            return functional.cross_entropy(known, labels[batch]) + exposure * uniform_cross_entropy(unknown)

        descend(network, len(images), step, options, report)
    return network


def uniform_cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    """CE(uniform, softmax(logits)), the mean over rows; log(classes) at its smallest."""
    return -functional.log_softmax(logits, dim=1).mean()


def check_rows(x: npt.NDArray[np.floating], y: Labels) -> None:
    """Raise `CalibrationError` where rows and labels cannot be trained on."""
    if len(x) == 0 or len(x) != len(y):
        raise CalibrationError(f"expected as many labels as rows, at least one; found {len(x)} rows, {len(y)} labels")
    if not np.isfinite(x).all():
        raise CalibrationError("x holds NaN or infinite values; fill or drop them before training")
