"""One training loop for all that hardening trains: AdamW under a one-cycle schedule, seeded, on a stated number of threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from garrison.errors import MissingExtraError
from garrison.hardening.scoring import Report, silent

try:
    import torch
    from torch import nn
except ImportError as error:
    raise MissingExtraError("torch", "torch") from error

Step = Callable[[torch.Tensor], torch.Tensor]
"""Indices of a batch's rows -> the loss to descend."""


@dataclass(frozen=True, slots=True)
class Training:
    """How to train.

    Attributes:
        epochs: passes over the rows.
        batch: rows in a step.
        learning_rate: at the top of the one-cycle schedule (Smith and Topin, 2019).
        weight_decay: of AdamW.
        seed: of the initial weights, the order of the rows and every other draw.
        threads: of torch, while it trains.
    """

    epochs: int = 9
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 5e-2
    seed: int = 0
    threads: int = 1


@contextmanager
def seeded(seed: int, threads: int) -> Iterator[None]:
    """Torch with this seed and so many threads; both are as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def descend(network: nn.Module, rows: int, step: Step, options: Training, report: Report = silent) -> None:
    """Train in place; leaves the network in evaluation mode. To be called inside `seeded`.

    Args:
        network: its parameters are trained.
        rows: number of training rows; each epoch visits each once, in a new order.
        step: the loss of a batch.
        report: told after every twentieth step.
    """
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    per_epoch = math.ceil(rows / options.batch)
    total = per_epoch * options.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.learning_rate, total_steps=total, pct_start=0.25)
    network.train()
    done = 0
    for epoch in range(options.epochs):
        for batch in torch.split(torch.randperm(rows), options.batch):
            optimiser.zero_grad(set_to_none=True)
            step(batch).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            done += 1
            if done % 20 == 0 or done == total:
                report(f"epoch {epoch + 1} of {options.epochs}", done / total)
    network.eval()


@torch.inference_mode()
def apply(network: nn.Module, x: npt.NDArray[np.float32] | torch.Tensor, rows: int = 1024) -> torch.Tensor:
    """The network's answer to all rows, in slices, in evaluation mode."""
    network.eval()
    x = torch.as_tensor(x)
    return torch.cat([network(part) for part in torch.split(x, rows)])
