"""D-DAE restorer: a small network that turns bent answers into clean ones.

Chen et al., "D-DAE: Defense-Penetrating Model Extraction Attacks" (IEEE S&P 2023): the thief simulates the defense on probabilities of
its own, trains a generator from bent to clean vectors, and puts it between the service and the extraction. The paper's first
stage, a classifier that tells which defense is there, is the parameter `mechanism` here: the thief is taken to know it.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from garrison.attacks.base import Tactic
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts
from garrison.attacks.tactics.common import Restored, nearest, needs_probabilities
from garrison.attacks.tactics.mechanisms import Mechanism, bent, imagined_answers
from garrison.errors import MissingExtraError
from garrison.types import FloatArray

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

_HIDDEN = 64
_BATCH = 256
_SMALL = 1e-6


class RestoreNetwork(Tactic, frozen=True):
    """Replace each answer by what a network makes of it that was trained to undo an imagined defense.

    Attributes:
        mechanism: the defense that the thief takes the service to have.
        draws: clean vectors that the network is trained on.
        epochs: passes over them.
    """

    name: ClassVar[str] = "restore-network"

    mechanism: Mechanism = "misinformation"
    draws: int = 10_000
    epochs: int = 8

    def __post_init__(self) -> None:
        if min(self.draws, self.epochs) < 1:
            raise ValueError("draws and epochs must be at least 1")

    def obstacle(self, facts: OracleFacts, knowledge: Knowledge) -> str:  # noqa: ARG002
        return needs_probabilities(facts)

    def around(
        self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator
    ) -> tuple[MeteredOracle, Knowledge]:
        clean = imagined_answers(rng, self.draws, oracle.facts.classes)
        net = _trained(clean, bent(clean, self.mechanism, rng), self.epochs, int(rng.integers(2**63)))

        def restore(p: FloatArray) -> FloatArray:
            with torch.inference_mode():
                found: FloatArray = torch.softmax(net(_logs(p)), dim=1).numpy().astype(np.float64)
            return found

        return nearest(Restored(oracle, restore), oracle), knowledge


def _logs(p: FloatArray) -> torch.Tensor:
    return torch.as_tensor(p, dtype=torch.float32).clamp_min(_SMALL).log()


def _trained(clean: FloatArray, seen: FloatArray, epochs: int, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    classes = clean.shape[1]
    net = nn.Sequential(nn.Linear(classes, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, classes))
    for layer in (net[0], net[2]):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)  # type: ignore[arg-type,operator]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    x, y = _logs(seen), torch.as_tensor(clean, dtype=torch.float32)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(x), generator=generator), _BATCH):
            optimiser.zero_grad(set_to_none=True)
            functional.cross_entropy(net(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return net.eval()
