"""The adversarial-robustness-toolbox's extraction attacks on our services and our networks, for cross-checks.

The toolbox takes whatever a network gives for probabilities. So the thief's network gets its softmax here, and both sides are looked
at: rows that do not sum to one are an error, not a figure.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from garrison.attacks.extraction.clones import fresh
from garrison.attacks.oracle import Oracle, OracleFacts
from garrison.types import Array, FloatArray

# The toolbox writes its settings into the home folder when it is imported, and breaks where two processes do so at once.
with warnings.catch_warnings(), TemporaryDirectory() as home, mock.patch.dict(os.environ, HOME=home):
    warnings.simplefilter("ignore")
    from art.attacks.evasion import CarliniL2Method, ProjectedGradientDescent
    from art.attacks.extraction import CopycatCNN, KnockoffNets
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork, PyTorchClassifier

__all__ = [
    "CarliniL2Method",
    "ProjectedGradientDescent",
    "PyTorchClassifier",
    "SoftCrossEntropy",
    "checked",
    "stolen",
    "thief",
    "victim_of",
]


class SoftCrossEntropy(nn.Module):
    """Against probabilities, from probabilities. The toolbox would reduce targets to classes for torch's own cross-entropy."""

    def forward(self, p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return -(targets * p.clamp_min(1e-9).log()).sum(dim=1).mean()


def checked(p: FloatArray) -> FloatArray:
    """The same probabilities; an error where they are none."""
    if p.min() < -1e-6 or np.abs(p.sum(axis=1) - 1).max() > 1e-4:
        raise ValueError("expected rows of probabilities that sum to 1; were these scores?")
    return p


def victim_of(oracle: Oracle) -> Any:
    """A service as the toolbox asks it. What it asks is counted in the returned object's `rows`."""
    facts = oracle.facts

    def predict(x: Array) -> FloatArray:
        wrapped.rows += len(x)
        found = oracle.query(x.astype(facts.dtype)).probabilities
        if found is None:
            raise ValueError("expected a service that releases probabilities")
        return checked(found)

    wrapped = BlackBoxClassifierNeuralNetwork(
        predict, facts.shape, facts.classes, clip_values=(float(np.min(facts.low)), float(np.max(facts.high)))
    )
    wrapped.rows = 0
    return wrapped


def thief(facts: OracleFacts, seed: int, *, softmax: bool = True) -> Any:
    """Our clone's network, fresh, as the toolbox trains it."""
    net: nn.Module = fresh(facts, torch.Generator().manual_seed(seed))
    net = nn.Sequential(net, nn.Softmax(dim=1)) if softmax else net
    return PyTorchClassifier(
        net,
        SoftCrossEntropy(),
        facts.shape,
        facts.classes,
        optimizer=torch.optim.Adam(net.parameters(), lr=2e-3),
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def stolen(
    oracle: Oracle, surrogate: Array, budget: int, seed: int, *, labels: bool, epochs: int = 20
) -> tuple[Callable[[Array], FloatArray], int]:
    """The toolbox's clone, by Copycat where `labels`, else by Knockoff with random rows; and how many rows it asked."""
    np.random.seed(seed)  # noqa: NPY002, the toolbox draws from numpy's global generator
    torch.manual_seed(seed)
    kind = CopycatCNN if labels else KnockoffNets
    victim = victim_of(oracle)
    attack = kind(
        victim,
        batch_size_fit=64,
        batch_size_query=250,
        nb_epochs=epochs,
        nb_stolen=budget,
        use_probability=not labels,
        **({} if labels else {"sampling_strategy": "random", "verbose": False}),
    )
    found = attack.extract(surrogate, thieved_classifier=thief(oracle.facts, seed))
    return lambda x: checked(found.predict(x)), int(victim.rows)
