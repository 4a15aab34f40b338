"""The generator of a thief without data: noise in, rows within the range of the inputs out.

Invariants: rows keep the range; equal calls in equal order give equal rows; the caller's own random numbers are left alone.
"""

from __future__ import annotations

import math

import numpy as np

from garrison.attacks.draws import within
from garrison.attacks.extraction.clones import reset
from garrison.attacks.extraction.students import Student
from garrison.attacks.oracle import OracleFacts
from garrison.errors import MissingExtraError
from garrison.types import Array, FloatArray

try:
    import torch
    from torch import nn
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

NOISE = 64
WIDTH = 256
UNSURE = 0.5
"""Weight of the clone's doubt about each row, beside the spread of its answers over all rows."""


class Generator:
    """A dense network with a sigmoid at its end, stretched to the range of the inputs.

    Args:
        facts: of the service; its range must be finite.
        learning_rate: of Adam.
        seed: of weights and noise.
    """

    def __init__(self, facts: OracleFacts, learning_rate: float, seed: int) -> None:
        self._facts = facts
        self._generator = torch.Generator().manual_seed(seed)
        layers = (nn.Linear(NOISE, WIDTH), nn.LeakyReLU(0.2), nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.2))
        with torch.device("meta"):
            net = nn.Sequential(*layers, nn.Linear(WIDTH, math.prod(facts.shape)))
        self._net = reset(net.to_empty(device="cpu"), self._generator)
        self._optimiser = torch.optim.Adam(self._net.parameters(), lr=learning_rate)
        self._noise: torch.Tensor | None = None
        low = torch.as_tensor(np.broadcast_to(facts.low, facts.shape).astype(np.float32))
        high = torch.as_tensor(np.broadcast_to(facts.high, facts.shape).astype(np.float32))
        self._low, self._width = low, high - low

    def rows(self, n: int) -> Array:
        """Fresh rows (n, *shape)."""
        self._noise = torch.randn((n, NOISE), generator=self._generator)
        with torch.no_grad():
            return within(self._made(self._noise).numpy(), self._facts)

    def climb(self, slope: FloatArray) -> None:
        """One step along a gradient by the last rows, shape (n, *shape), so that the next ones lie higher."""
        if self._noise is None:
            raise ValueError("make rows before moving the generator by them")
        size = float(np.abs(slope).mean()) or 1.0
        with torch.inference_mode(mode=False):
            self._optimiser.zero_grad(set_to_none=True)
            made = self._made(self._noise)
            (-(made * torch.as_tensor((slope / size).astype(np.float32))).sum(dim=0).mean()).backward()  # type: ignore[no-untyped-call]
            self._optimiser.step()

    def follow_clone(self, student: Student, n: int, steps: int) -> None:
        """Steps towards rows that the clone answers with all classes, and is unsure about."""
        net = student.network()
        with torch.inference_mode(mode=False):
            for _ in range(steps):
                noise = torch.randn((n, NOISE), generator=self._generator)
                self._optimiser.zero_grad(set_to_none=True)
                p = torch.softmax(net(self._made(noise)), dim=1)
                gain = _entropy(p.mean(dim=0)) + UNSURE * _entropy(p).mean()
                (-gain).backward()  # type: ignore[no-untyped-call]
                self._optimiser.step()

    def _made(self, noise: torch.Tensor) -> torch.Tensor:
        share = torch.sigmoid(self._net(noise)).reshape(-1, *self._facts.shape)
        found: torch.Tensor = self._low + share * self._width
        return found


def _entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.clamp_min(1e-9).log()).sum(dim=-1)
